"""Published lists of clips: their formats, and which of our clips they name."""

import tempfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench.data.video_lists import read_video_list
from kinetics_bench.evaluation.key_lists import KeyList, parse_key_list, read_key_list
from kinetics_tools.core.errors import EvaluationError, KineticsError, ManifestError
from kinetics_tools.core.keys import file_keys, source_video
from support import MediaServer

ONE, TWO, THREE = (
    "-J9hRbCLQ0x_000010_000020",
    "abcdefghijk_000003_000013",
    "abcdefghijk_000090_000100",
)
KEYS = (ONE, TWO, THREE)


def found(text: str, keys: tuple[str, ...] = KEYS) -> list[set[str]]:
    return [set(names) for names in parse_key_list(text, "list").find(keys).values()]


@pytest.mark.parametrize(
    "line",
    [
        ONE,
        f"{ONE}.mp4",
        "-J9hRbCLQ0x_10_20",
        "-J9hRbCLQ0x",
        f"abseiling/{ONE}.mp4 0",
        f"abseiling/{ONE}.mp4,0",
        f"playing drums/{ONE}.avi 12",
        f"abseiling/{ONE} 250 0",
        "val_256/abseiling/-J9hRbCLQ0x.mp4 0",
        "-J9hRbCLQ0x.mp4\t0",
        f"abseiling/{ONE}.mp4;3",
        f"abseiling/{ONE}.mp4 0 120 3",
        "-J9h*",
    ],
)
def test_a_line_of_any_format_names_its_clip(line: str) -> None:
    assert found(f"# published with the paper\n\n{line}\r\n") == [{ONE}]


@pytest.mark.parametrize(
    "text",
    [
        "youtube_id,time_start,time_end\n-J9hRbCLQ0x,10,20\n",
        'label,youtube_id,time_start,time_end,split,is_cc\n"a, b",-J9hRbCLQ0x,10,20,val,0\n',
        "\ufeffvideo,start,end\n-J9hRbCLQ0x,10,20\n",
        '{"-J9hRbCLQ0x": {"annotations": {"label": "a", "segment": [10, 20]}, "subset": "val"}}',
    ],
)
def test_a_list_of_kinetics_names_its_clips(text: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text)
    found = read_key_list(str(tmp_path / "list")).find(KEYS)
    assert found == {ONE: frozenset({ONE})}


@given(st.lists(st.sampled_from((*"ab/.#,; 0_1", ONE, "-J9hRbCLQ0x_10_20", "\n")), max_size=30))
def test_a_clip_that_a_list_names_is_of_a_video_that_it_names(pieces: list[str]) -> None:
    """What was scored and what was trained on are read from lists of the same formats."""
    text = "".join(pieces)
    try:
        named = parse_key_list(text, "list").find(KEYS)
    except EvaluationError:
        return
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "list").write_text(text)
        videos = read_video_list(str(path), Path(folder)).videos
    assert {source_video(key) for keys in named.values() for key in keys} <= videos


def test_a_video_names_all_its_clips_and_a_clip_itself_alone() -> None:
    assert found("abcdefghijk\n") == [{TWO, THREE}]
    assert found(f"{TWO}\n") == [{TWO}]


def test_what_is_not_there_names_nothing() -> None:
    assert found("abcdefghijk_000004_000014\nzzzzzzzzzzz\nx/y.mp4 3\nJ9hRbCLQ0x\n") == [set()] * 4


def test_lines_that_are_there_twice_are_one_entry() -> None:
    assert parse_key_list(f"{ONE}\n{ONE}\n", "list").entries == (ONE,)


def test_files_whose_keys_have_a_hash_are_found() -> None:
    path = PurePosixPath("brush_hair/#1 (a).avi")
    (key,) = file_keys([path]).values()
    assert key != path.stem
    assert found(f"{path} 0\n", (key, ONE)) == [{key}]


def test_lists_that_name_nothing_or_are_none_are_one_line(tmp_path: Path) -> None:
    for text in ("", "# only a comment\n\n"):
        with pytest.raises(EvaluationError, match="list names no clip"):
            parse_key_list(text, "list")
    with pytest.raises(EvaluationError, match="line 2, has 9000 characters"):
        parse_key_list("a\n" + "x" * 9000, "list")
    with pytest.raises(ManifestError, match="list: 1 bad rows"):
        parse_key_list("youtube_id,time_start,time_end\n-J9hRbCLQ0x,20,10\n", "list")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_key_list(str(tmp_path / "absent"))
    (tmp_path / "tar").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(EvaluationError, match="UTF-8"):
        read_key_list(str(tmp_path / "tar"))


def test_a_list_is_read_from_an_address_whose_secrets_are_not_told(
    media_server: MediaServer,
) -> None:
    media_server.put("list", f"{ONE} 0\n".encode())
    media_server.put("page", b"<!doctype html><html></html>")
    address = f"{media_server.address}/list.mp4"
    assert read_key_list(address) == KeyList(address, (ONE,))
    for absent in ("absent.mp4", "page.mp4"):
        with pytest.raises(EvaluationError, match="the list cannot be fetched: http://127") as told:
            read_key_list(f"{media_server.address}/{absent}?token=secret")
        assert "secret" not in str(told.value)
    for odd in ("ftp://host/list", "http://", "http://[/"):
        with pytest.raises(KineticsError):
            read_key_list(odd)


@given(st.text(max_size=200))
def test_any_text_is_a_list_or_one_error(text: str) -> None:
    try:
        named = parse_key_list(text, "list").find(KEYS)
    except KineticsError:
        return
    assert all(each <= {*KEYS} for each in named.values())
