"""What a job will cost, before it begins: time, bytes to fetch and disk, for each source.

Every assumed figure is a constant here, with its origin. The figures are for planning: when a run
begins, a source logs what it then knows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kinetics_tools.core import console
from kinetics_tools.core.errors import lookup
from kinetics_tools.dataset.manifest import Segment

# The CVDF mirror of Kinetics-400: 436 GB of archives for all splits, and the files in them
# (cvdfoundation/kinetics-dataset, issues 15 and 51).
MIRROR_BYTES = 436e9
MIRROR_CLIPS: Mapping[str, int] = {"train": 241_258, "val": 19_881, "test": 38_685}
LISTED: Mapping[str, int] = {"train": 246_534, "val": 19_906, "test": 39_805}
# Assumed: a network of 1 Gb/s, used fully by the mirror.
LINK_BYTES_S = 125e6
# Measured: media.cut with the default recipe on 10 s of the three Kinetics clips that the project
# tests with (340x256, 28 to 30 fps, without sound) gave 1.30, 1.09 and 0.81 MB, in 2.0, 1.9 and
# 1.6 s of one core with the decoding of the result (2 cores of a cloud machine, ffmpeg 9.0.2).
CLIP_BYTES_S = 107e3
CUT_CORE_S_S = 0.18
# Assumed: 600 kb/s, YouTube's rate for H.264 at a height of 360 pixels; and that a section costs at
# most 2.5 times its share of the file (index, keyframe before it, margin).
VIDEO_BYTES_S = 75e3
SECTION_FACTOR = 2.5

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one source of a job costs.

    Attributes:
        source: as named on the command line.
        num_clips: how many clips it is tried for.
        fetch_bytes: upper limit of the bytes to fetch; None where it is unknown.
        seconds: the longer of fetching and cutting, which overlap; None where it is unknown.
        because: what the figures assume.
    """

    source: str
    num_clips: int
    fetch_bytes: float | None
    seconds: float | None
    because: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job costs: its stages in order, and the bytes of the finished clips."""

    stages: tuple[Stage, ...]
    disk_bytes: float


@dataclass(frozen=True, slots=True)
class _Work:
    """What one source is tried for. Expected values: numbers of clips may be fractions."""

    splits: Mapping[str, float]  # clips by split
    videos: float
    length_s: float  # of all clips together
    videos_per_hour: float
    cut_s: float  # to cut and check the clips with all processes


def estimate(
    segments: Sequence[Segment], sources: Iterable[str], *, videos_per_hour: float, jobs: int
) -> Estimate:
    """What it costs to make the clips of `segments`.

    The mirror has a known number of Kinetics-400's clips: a later source is tried for the rest. All
    other sources are counted as if the sources before them had no clip.

    Args:
        segments: those to do.
        sources: as named on the command line, in order.
        videos_per_hour: the rate limit for YouTube.
        jobs: processes that cut.

    Raises:
        UnknownNameError: no such source.
    """
    splits = Counter(s.split for s in segments)
    left = dict.fromkeys(splits, 1.0)
    num_videos = len({s.youtube_id for s in segments})
    length_s = float(sum(s.end_s - s.start_s for s in segments))
    stages = []
    for source in sources:
        kind = source.partition(":")[0]
        wanted = {split: count * left[split] for split, count in splits.items()}
        share = sum(wanted.values()) / max(len(segments), 1)
        work = _Work(
            splits=wanted,
            videos=num_videos * share,
            length_s=length_s * share,
            videos_per_hour=videos_per_hour,
            cut_s=length_s * share * CUT_CORE_S_S / jobs,
        )
        fetch_bytes, fetch_s, because = lookup("source", kind, COSTS)(work)
        if fetch_s is not None and fetch_s < work.cut_s:
            because += f"; cutting takes longer, {10 * CUT_CORE_S_S:.1f} s of one core for 10 s"
        stages.append(
            Stage(
                source=source,
                num_clips=round(sum(wanted.values())),
                fetch_bytes=fetch_bytes,
                seconds=None if fetch_s is None else max(fetch_s, work.cut_s),
                because=because,
            )
        )
        if kind == "cvdf":
            left |= {split: 1 - _mirrored(split) for split in splits}
    return Estimate(tuple(stages), length_s * CLIP_BYTES_S)


def _mirrored(split: str) -> float:
    """The share of a split's listed clips that the mirror has."""
    return MIRROR_CLIPS[split] / LISTED[split] if split in LISTED else 0.0


_Cost = tuple[float | None, float | None, str]  # bytes, seconds to fetch them, because


def _mirror(work: _Work) -> _Cost:
    clips = sum(MIRROR_CLIPS.get(split, 0) for split, count in work.splits.items() if count)
    if not clips:
        return None, None, "the size of a mirror of these splits is unknown"
    size = clips * MIRROR_BYTES / sum(MIRROR_CLIPS.values())
    return (
        size,
        size / LINK_BYTES_S,
        "all archives of a Kinetics-400 split (no list says which one has a clip), at 1 Gb/s",
    )


def _youtube(work: _Work) -> _Cost:
    return (
        work.length_s * VIDEO_BYTES_S * SECTION_FACTOR,
        work.videos / work.videos_per_hour * _HOUR_S,
        f"{work.videos_per_hour:g} videos per hour, sections of 600 kb/s videos",
    )


def _folder(work: _Work) -> _Cost:
    del work  # the videos are on disk: only cutting takes time
    return 0.0, 0.0, "nothing is fetched"


def _url(work: _Work) -> _Cost:
    del work  # a server of the user's, with unknown videos and network
    return None, None, "whole videos of unknown size"


COSTS: Mapping[str, Callable[[_Work], _Cost]] = {
    "cvdf": _mirror,
    "youtube": _youtube,
    "dir": _folder,
    "url": _url,
}


def format_estimate(segments: Sequence[Segment], expected: Estimate) -> str:
    """Two small tables: numbers of segments by split, and costs by source."""
    splits = sorted({s.split for s in segments})
    groups = [(split, [s for s in segments if s.split == split]) for split in splits]
    if len(groups) != 1:
        groups.append(("all", list(segments)))
    kinds = console.text_table([_kinds(name, chosen) for name, chosen in groups])
    costs = console.text_table(list(map(_costs, expected.stages)), left_aligned=["assuming"])
    return (
        f"{kinds}\n\n{costs}\n\n"
        f"disk for the finished clips: about {console.size_text(expected.disk_bytes)}"
        f" ({console.size_text(10 * CLIP_BYTES_S)} for 10 s at a height of 256 pixels)"
    )


def _kinds(name: str, segments: Sequence[Segment]) -> dict[str, str]:
    return {
        "split": name,
        "segments": str(len(segments)),
        "videos": str(len({s.youtube_id for s in segments})),
        "classes": str(len({s.label for s in segments} - {None})),
    }


def _costs(stage: Stage) -> dict[str, str]:
    fetch = "nothing" if stage.fetch_bytes == 0 else "unknown"
    return {
        "source": stage.source,
        "clips": str(stage.num_clips),
        "to fetch": f"up to {console.size_text(stage.fetch_bytes)}" if stage.fetch_bytes else fetch,
        "time": "unknown" if stage.seconds is None else console.time_text(stage.seconds),
        "assuming": stage.because,
    }
