"""Estimates: arithmetic that can be done by hand, and tables that say what they rest on."""

from fractions import Fraction
from pathlib import Path

import pytest

from kinetics_tools.core import console
from kinetics_tools.core.errors import UnknownNameError
from kinetics_tools.dataset.manifest import Segment, read_manifest
from kinetics_tools.download import estimate
from kinetics_tools.download.sources.registry import SOURCES
from kinetics_tools.media.clips import cut
from kinetics_tools.media.recipe import ClipRecipe


def segments(count: int, split: str = "val", *, a_video: int = 1) -> list[Segment]:
    return [
        Segment(
            youtube_id=f"v{number // a_video}",
            start_s=Fraction(20 * (number % a_video)),
            end_s=Fraction(20 * (number % a_video) + 10),
            label="yoga",
            split=split,
        )
        for number in range(count)
    ]


def test_youtube_takes_as_long_as_its_pace_says() -> None:
    found = estimate.estimate(segments(480, a_video=2), ["youtube"], videos_per_hour=240, jobs=8)
    (stage,) = found.stages
    assert stage.num_clips == 480
    assert stage.seconds == pytest.approx(3600)  # 240 videos
    assert stage.fetch_bytes == pytest.approx(480 * 10 * 75e3 * 2.5)
    assert found.disk_bytes == pytest.approx(480 * 1.07e6)


def test_the_mirror_is_read_by_whole_splits() -> None:
    few = estimate.estimate(segments(10), ["cvdf"], videos_per_hour=240, jobs=8).stages[0]
    assert few.fetch_bytes == pytest.approx(436e9 * 19_881 / 299_824)
    assert few.seconds == pytest.approx(436e9 * 19_881 / 299_824 / 125e6)
    both = estimate.estimate(
        segments(10) + segments(1, "train"), ["cvdf"], videos_per_hour=240, jobs=8
    ).stages[0]
    assert both.fetch_bytes == pytest.approx(436e9 * (19_881 + 241_258) / 299_824)


def test_cutting_decides_where_it_takes_longer_than_fetching() -> None:
    whole = segments(100_000)
    one = estimate.estimate(whole, ["cvdf"], videos_per_hour=240, jobs=1).stages[0]
    assert one.seconds == pytest.approx(100_000 * 1.8)
    ten = estimate.estimate(whole, ["dir:/videos"], videos_per_hour=240, jobs=10).stages[0]
    assert ten.seconds == pytest.approx(100_000 * 0.18)
    assert ten.fetch_bytes == 0


def test_youtube_after_the_mirror_is_asked_for_what_the_mirror_lacks() -> None:
    whole = segments(246_534, "train")
    cvdf, youtube = estimate.estimate(
        whole, ["cvdf", "youtube"], videos_per_hour=240, jobs=64
    ).stages
    assert cvdf.num_clips == 246_534
    assert cvdf.fetch_bytes == pytest.approx(436e9 * 241_258 / 299_824)
    assert youtube.num_clips == 246_534 - 241_258
    assert youtube.seconds == pytest.approx((246_534 - 241_258) / 240 * 3600)


def test_what_is_unknown_is_called_unknown() -> None:
    (url,) = estimate.estimate(
        segments(3), ["url:http://x/{youtube_id}"], videos_per_hour=1, jobs=1
    ).stages
    assert (url.fetch_bytes, url.seconds) == (None, None)
    own = segments(3, "mine")
    cvdf, youtube = estimate.estimate(own, ["cvdf", "youtube"], videos_per_hour=1, jobs=1).stages
    assert (cvdf.fetch_bytes, cvdf.seconds) == (None, None)
    assert youtube.num_clips == 3
    with pytest.raises(UnknownNameError, match="Did you mean 'youtube'"):
        estimate.estimate(own, ["yotube"], videos_per_hour=1, jobs=1)


def test_every_source_has_a_cost() -> None:
    assert estimate.COSTS.keys() == SOURCES.keys()


def test_nothing_to_do_costs_nothing() -> None:
    found = estimate.estimate([], ["cvdf", "youtube"], videos_per_hour=240, jobs=2)
    assert [stage.num_clips for stage in found.stages] == [0, 0]
    assert found.disk_bytes == 0
    assert estimate.format_estimate([], found).startswith("split  segments  videos  classes")


def test_the_tables_read_well() -> None:
    both = segments(4, a_video=2) + segments(1000, "train")
    found = estimate.estimate(both, ["dir:/v", "youtube"], videos_per_hour=240, jobs=2)
    said = estimate.format_estimate(both, found).splitlines()
    assert said[:4] == [
        "split  segments  videos  classes",
        "train      1000    1000        1",
        "val           4       2        1",
        "all        1004    1000        1",
    ]
    assert said[5].split() == ["source", "clips", "to", "fetch", "time", "assuming"]
    assert said[6].startswith(
        "dir:/v    1004       nothing  15 min  nothing is fetched; cutting takes longer, 1.8 s"
    )
    assert said[7].startswith("youtube   1004  up to 1.9 GB   4.2 h  240 videos per hour, ")
    assert (
        said[-1]
        == "disk for the finished clips: about 1.1 GB (1.1 MB for 10 s at a height of 256 pixels)"
    )


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 B"), (999, "999 B"), (1.07e6, "1.1 MB"), (28.9e9, "29 GB"), (1.2e12, "1.2 TB")],
)
def test_sizes_have_two_digits(size: float, said: str) -> None:
    assert console.size_text(size) == said


@pytest.mark.parametrize(
    ("time", "said"),
    [(40, "40 s"), (119, "119 s"), (720, "12 min"), (12_240, "3.4 h"), (34 * 86_400, "34 days")],
)
def test_times_have_a_unit_of_which_there_are_a_few(time: float, said: str) -> None:
    assert console.time_text(time) == said


def test_the_real_list_takes_days_of_youtube(shared_data: Path) -> None:
    official = read_manifest(shared_data / "annotations" / "kinetics400" / "val.csv").segments
    found = estimate.estimate(official, ["youtube"], videos_per_hour=240, jobs=2)
    assert console.time_text(found.stages[0].seconds or 0) == "3.5 days"
    assert found.disk_bytes == pytest.approx(19_906 * 1.07e6)


@pytest.mark.full
def test_the_disk_of_a_clip_is_about_what_real_clips_take(
    shared_data: Path, recipe: ClipRecipe, ffmpeg: Path, tmp_path: Path
) -> None:
    sizes = []
    for name in ("R6llTwEh07w.mp4", "WUzgd7C1pWA.mp4", "arm_wrestling.mp4"):
        clip = tmp_path / name
        cut(
            shared_data / "clips" / name,
            clip,
            start_s=Fraction(0),
            end_s=Fraction(10),
            recipe=recipe,
            binary=ffmpeg,
        )
        sizes.append(clip.stat().st_size)
    assert sum(sizes) / len(sizes) == pytest.approx(10 * estimate.CLIP_BYTES_S, rel=0.05)
