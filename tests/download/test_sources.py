"""The chain by name, and folders as sources."""

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from kinetics_tools.core.errors import KineticsError, Reason, UnknownNameError
from kinetics_tools.core.units import WHOLE
from kinetics_tools.dataset.ledger import History
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import group_by_video
from kinetics_tools.download.sources.registry import Settings, make_sources


def segment(youtube_id: str, start_s: int = 0) -> Segment:
    return Segment(
        youtube_id=youtube_id,
        start_s=Fraction(start_s),
        end_s=Fraction(start_s + 10),
        label="a",
        split="val",
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", out=tmp_path / "out")


def test_segments_come_by_video_in_the_order_of_the_first() -> None:
    given = [segment("b"), segment("a"), segment("b", 20)]
    assert group_by_video(given) == [[given[0], given[2]], [given[1]]]


def test_a_folder_has_clips_by_key_and_videos_by_id(tmp_path: Path, settings: Settings) -> None:
    folder = tmp_path / "folder"
    (folder / "some class").mkdir(parents=True)
    clip = folder / "some class" / "abc_000001_000011.mkv"
    video = folder / "-bc.webm"
    for path in (clip, video, folder / "abc_000001_000011.json", folder / "note.txt"):
        path.touch()
    (source,) = make_sources([f"dir:{folder}"], settings)
    wanted = [segment("abc", 1), segment("-bc"), segment("abc", 20), segment("note")]
    units = list(source.units(wanted, WHOLE, tmp_path))
    assert [unit.segments for unit in units] == [
        (wanted[0],),
        (wanted[2],),
        (wanted[1],),
        (wanted[3],),
    ]
    (ready,) = source.open(units[0], tmp_path).footage(wanted[0])
    assert (ready.path, ready.is_clip) == (clip, True)
    (footage,) = source.open(units[2], tmp_path).footage(wanted[1])
    assert (footage.path, footage.zero_s, footage.is_clip) == (video, Fraction(0), False)
    for unit, name in ((units[1], "abc"), (units[3], "note")):
        assert unit.error is not None
        assert unit.error.reason is Reason.ABSENT
        assert unit.error.detail == f"no file {name}.* below {folder}"


def test_every_file_that_may_show_a_segment_is_named_clips_first(
    tmp_path: Path, settings: Settings
) -> None:
    names = ("b/abc_000001_000011.mp4", "a/abc_000001_000011.avi", "c/abc.webm", "a/abc.mp4")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "abc.mkv").mkdir()  # a folder with the name of a video
    (tmp_path / "a" / "abc.mov").symlink_to("nowhere.mov")
    os.mkfifo(tmp_path / "a" / "abc.avi")
    (source,) = make_sources([f"dir:{tmp_path}"], settings)
    wanted = segment("abc", 1)
    (unit,) = source.units([wanted], WHOLE, tmp_path)
    tried = list(source.open(unit, tmp_path).footage(wanted))
    assert [file.path.relative_to(tmp_path).as_posix() for file in tried] == [
        "a/abc_000001_000011.avi",
        "b/abc_000001_000011.mp4",
        "a/abc.mp4",
        "c/abc.webm",
    ]
    assert [file.is_clip for file in tried] == [True, True, False, False]


def test_links_to_folders_are_followed_once(tmp_path: Path, settings: Settings) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for made in (folder / "deep", elsewhere / "more"):
        made.mkdir(parents=True)
    (elsewhere / "more" / "abc.mp4").touch()
    (tmp_path / "one.mp4").touch()
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere)
    (folder / "deep" / "up").symlink_to(folder)
    (elsewhere / "round").symlink_to(elsewhere / "more")
    (elsewhere / "more" / "loop").symlink_to(elsewhere)
    (folder / "def.mp4").symlink_to(tmp_path / "one.mp4")
    (source,) = make_sources([f"dir:{folder}"], settings)
    wanted = [segment("abc"), segment("def")]
    units = list(source.units(wanted, WHOLE, tmp_path))
    tried = [
        file.path.relative_to(folder).as_posix()
        for unit, one in zip(units, wanted, strict=True)
        for file in unit.files[one.key]
    ]
    assert tried == ["again/more/abc.mp4", "def.mp4"]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, settings: Settings
) -> None:
    folder, inner = tmp_path / "folder", tmp_path / "folder" / "inner"
    inner.mkdir(parents=True)
    (folder / "lost+found").mkdir(mode=0)
    (source,) = make_sources([f"dir:{folder}"], settings)
    assert len(list(source.units([segment("abc")], WHOLE, tmp_path))) == 1
    folder.rename(tmp_path / "elsewhere")  # as a disk that is unmounted
    with pytest.raises(KineticsError, match=f"{folder} cannot be read .No such file"):
        list(source.units([segment("abc")], WHOLE, tmp_path))


def test_a_long_video_of_a_folder_is_cut_in_small_shares(
    tmp_path: Path, settings: Settings
) -> None:
    (tmp_path / "long.mp4").touch()
    (source,) = make_sources([f"dir:{tmp_path}"], settings)
    wanted = [segment("long", start) for start in range(0, 100, 10)]
    units = list(source.units(wanted, WHOLE, tmp_path))
    assert [len(unit.segments) for unit in units] == [4, 4, 2]
    assert [s for unit in units for s in unit.segments] == wanted
    files = {file.path for unit in units for tried in unit.files.values() for file in tried}
    assert files == {tmp_path / "long.mp4"}


def test_unusable_sources_are_one_line(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'youtube'"):
        make_sources(["youtub"], settings)
    for named in (
        f"dir:{tmp_path / 'none'}",
        "dir:",
        "url:http://host/fixed.mp4",
        "url:ftp://host/{youtube_id}",
        "url:/etc/{youtube_id}",
        "youtube:cookies",
        "cvdf:http://host",
    ):
        with pytest.raises(KineticsError, match="--source"):
            make_sources([named], settings)


def test_the_chain_keeps_the_order_and_has_each_source_once(
    tmp_path: Path, settings: Settings
) -> None:
    named = ["cvdf", "youtube", f"dir:{tmp_path}", "youtube"]
    chain = make_sources(named, replace(settings, dataset="kinetics400"))
    assert [source.name for source in chain] == [
        "cvdf",
        "cvdf-replacement",
        "youtube",
        f"dir:{tmp_path}",
    ]
    assert [source.name for source in chain if source.wants(History())] == [
        "cvdf",
        "youtube",
        f"dir:{tmp_path}",
    ]
