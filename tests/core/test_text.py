"""Text files of users: byte order marks, line ends, encodings."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_tools.core import text
from kinetics_tools.core.errors import KineticsError, ManifestError
from kinetics_tools.core.text import decode_text, printable, read_text
from kinetics_tools.dataset.labels import read_labels
from kinetics_tools.dataset.manifest import read_manifest
from kinetics_tools.download.sources.mirror import parse_list

ROWS = "label,youtube_id,time_start,time_end,split\nyoga,abc,0,10,val\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_mark_and_line_ends_of_other_systems_change_nothing(
    tmp_path: Path, mark: bytes, ends: str
) -> None:
    def written(text: str) -> Path:
        path = tmp_path / "file.txt"
        path.write_bytes(mark + text.replace("\n", ends).encode())
        return path

    assert read_text(written("a\nä\n")).splitlines() == ["a", "ä"]
    assert read_labels(written("a b\nä\n")) == ("a b", "ä")
    assert read_text(written("a\n\ufeff\ufeffb\n")).split() == [
        "a",
        "b" if ends != "\r" else "\ufeff\ufeffb",
    ]
    assert [segment.label for segment in read_manifest(written(ROWS)).segments] == ["yoga"]
    address = "http://host/list.txt"
    content = written("a.tar\nb.tar\n").read_bytes()
    assert parse_list(content, address) == ["http://host/a.tar", "http://host/b.tar"]


READERS: dict[str, Callable[[Path], object]] = {
    "text": read_text,
    "labels": read_labels,
    "manifest": read_manifest,
    "mirror": lambda path: parse_list(path.read_bytes(), str(path)),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("codec", "name"),
    [
        *(("utf-16", "UTF-16"), ("utf-32", "UTF-32")),
        *(("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16")),  # without a mark
    ],
)
def test_a_wide_encoding_is_named(
    tmp_path: Path, reader: Callable[[Path], object], codec: str, name: str
) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(ROWS.encode(codec))
    with pytest.raises(KineticsError, match=f"file.txt is a file in {name}; save it as UTF-8"):
        reader(path)


def test_a_byte_that_is_not_utf_8_is_found() -> None:
    with pytest.raises(ManifestError, match="list, line 2, is not UTF-8; save the file as UTF-8"):
        decode_text(b"a\n\xff\n", "list", raises=ManifestError)
    assert decode_text(b"a\xff", "list", errors="replace") == "a\ufffd"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KineticsError, match=r"none\.txt cannot be read: No such file"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(KineticsError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


@pytest.mark.parametrize("reader", (read_text, read_labels, read_manifest))
def test_a_list_without_end_or_that_never_comes_is_one_line(
    reader: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KineticsError, match=r"/dev/zero.*It is a device, not a file"):
        reader(Path("/dev/zero"))
    monkeypatch.setattr(text, "PIPE_WAIT_S", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(KineticsError, match=r"pipe.*Nothing came through this pipe in 0.1 s"):
        reader(pipe)
    monkeypatch.setattr(text, "MAX_LIST_BYTES", 2**21)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**22)
    with pytest.raises(KineticsError, match=r"large.*It is larger than 2097152 bytes"):
        reader(tmp_path / "large")


def test_a_pipe_with_a_writer_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    rows = ROWS + "".join(f"yoga,{number:011},0,10,val\n" for number in range(20_000))
    writer = threading.Thread(target=lambda: pipe.write_text(rows))
    writer.start()
    assert len(read_manifest(pipe).segments) == 20_001
    writer.join()


def test_text_from_outside_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b[31mb\u202ec\x00\td\nñ \ud800") == (
        "a\\x1b[31mb\\u202ec\\x00\\td\nñ \\ud800"
    )
