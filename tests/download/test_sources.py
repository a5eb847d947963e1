"""The chain by name, and folders as sources."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from kinetics_tools.core.errors import KineticsError, Reason, SourceError, UnknownNameError
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
        (wanted[0], wanted[2]),
        (wanted[1],),
        (wanted[3],),
    ]
    assert units[0].ready == {wanted[0].key: clip}
    (footage,) = source.open(units[1], tmp_path).footage(wanted[1])
    assert (footage.path, footage.zero_s) == (video, Fraction(0))
    with pytest.raises(SourceError, match=r"no file note\.\*") as caught:
        next(source.open(units[2], tmp_path).footage(wanted[3]))
    assert caught.value.reason is Reason.GONE


def test_a_long_video_of_a_folder_is_cut_in_small_shares(
    tmp_path: Path, settings: Settings
) -> None:
    (tmp_path / "long.mp4").touch()
    (source,) = make_sources([f"dir:{tmp_path}"], settings)
    wanted = [segment("long", start) for start in range(0, 100, 10)]
    units = list(source.units(wanted, WHOLE, tmp_path))
    assert [len(unit.segments) for unit in units] == [4, 4, 2]
    assert [s for unit in units for s in unit.segments] == wanted
    assert {unit.video for unit in units} == {tmp_path / "long.mp4"}


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
