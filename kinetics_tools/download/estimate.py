"""What a job will cost before it begins: time, bytes to fetch and disk, source by source.

Every figure that is assumed is a constant here, with where it comes from. They are for planning: a
source says more exactly what to expect once it has asked.
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
# Assumed: a line of 1 Gb/s that the mirror fills.
LINK_BYTES_S = 125e6
# Measured: media.cut with the default recipe on 10 s of the three Kinetics clips that the project
# tests with (340x256, 28 to 30 fps, sound dropped) gave 1.30, 1.09 and 0.81 MB, in 2.0, 1.9 and
# 1.6 s of one core, decoding what was written included (2 cores of a cloud machine, ffmpeg 9.0.2).
CLIP_BYTES_S = 107e3
CUT_CORE_S_S = 0.18
# Assumed: 600 kb/s, what YouTube gives a 360-line H.264 picture; and that a section costs at most
# 2.5 times its share of the file (index, keyframe before it, margin).
VIDEO_BYTES_S = 75e3
SECTION_FACTOR = 2.5

_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one source of a job costs.

    Attributes:
        source: as named on the command line.
        num_clips: how many clips are asked of it.
        fetch_bytes: at most so many are fetched; None where nothing is known of it.
        seconds: the longer of fetching and cutting, which overlap; None where nothing is known.
        because: what the figures rest on.
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
class _Asked:
    """What is asked of one source. Expected numbers: clips may be fractions."""

    splits: Mapping[str, float]  # clips by split
    videos: float
    length_s: float  # of all clips together
    videos_per_hour: float
    work_s: float  # to cut and check them with all processes


def estimate(
    segments: Sequence[Segment], sources: Iterable[str], *, videos_per_hour: float, jobs: int
) -> Estimate:
    """What it costs to make the clips of `segments`.

    Of the mirror it is known how many clips of Kinetics-400 it has: a later source is asked for the
    rest. Every other source is counted as though the sources before it had none.

    Args:
        segments: those to do.
        sources: as named on the command line, in order.
        videos_per_hour: the pace at YouTube.
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
        asked = _Asked(
            splits=wanted,
            videos=num_videos * share,
            length_s=length_s * share,
            videos_per_hour=videos_per_hour,
            work_s=length_s * share * CUT_CORE_S_S / jobs,
        )
        fetch_bytes, fetch_s, because = lookup("source", kind, COSTS)(asked)
        if fetch_s is not None and fetch_s < asked.work_s:
            because += f"; cutting takes longer, {10 * CUT_CORE_S_S:.1f} s of one core for 10 s"
        stages.append(
            Stage(
                source=source,
                num_clips=round(sum(wanted.values())),
                fetch_bytes=fetch_bytes,
                seconds=None if fetch_s is None else max(fetch_s, asked.work_s),
                because=because,
            )
        )
        if kind == "cvdf":
            left |= {split: 1 - _mirrored(split) for split in splits}
    return Estimate(tuple(stages), length_s * CLIP_BYTES_S)


def _mirrored(split: str) -> float:
    """Which share of a split's listed clips the mirror has."""
    return MIRROR_CLIPS[split] / LISTED[split] if split in LISTED else 0.0


_Cost = tuple[float | None, float | None, str]  # bytes, seconds to fetch them, because


def _mirror(asked: _Asked) -> _Cost:
    clips = sum(MIRROR_CLIPS.get(split, 0) for split, count in asked.splits.items() if count)
    if not clips:
        return None, None, "nothing is known of a mirror of these splits"
    size = clips * MIRROR_BYTES / sum(MIRROR_CLIPS.values())
    return (
        size,
        size / LINK_BYTES_S,
        "a Kinetics-400 split is read whole (no list says which archive has a clip), at 1 Gb/s",
    )


def _youtube(asked: _Asked) -> _Cost:
    return (
        asked.length_s * VIDEO_BYTES_S * SECTION_FACTOR,
        asked.videos / asked.videos_per_hour * _HOUR_S,
        f"{asked.videos_per_hour:g} videos an hour, sections of 600 kb/s videos",
    )


def _folder(asked: _Asked) -> _Cost:
    del asked  # the videos lie there: only cutting takes time
    return 0.0, 0.0, "nothing is fetched"


def _url(asked: _Asked) -> _Cost:
    del asked  # a server of the user's: nothing is known of its videos or its line
    return None, None, "whole videos of unknown size"


COSTS: Mapping[str, Callable[[_Asked], _Cost]] = {
    "cvdf": _mirror,
    "youtube": _youtube,
    "dir": _folder,
    "url": _url,
}


def format_estimate(segments: Sequence[Segment], expected: Estimate) -> str:
    """Two small tables: what the segments are, and what each source costs."""
    splits = sorted({s.split for s in segments})
    groups = [(split, [s for s in segments if s.split == split]) for split in splits]
    if len(groups) != 1:
        groups.append(("all", list(segments)))
    kinds = console.text_table([_kinds(name, chosen) for name, chosen in groups])
    costs = console.text_table(list(map(_costs, expected.stages)), words=["counted with"])
    return (
        f"{kinds}\n\n{costs}\n\n"
        f"disk for the finished clips: about {console.size_text(expected.disk_bytes)}"
        f" ({console.size_text(10 * CLIP_BYTES_S)} for 10 s at 256 lines)"
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
        "counted with": stage.because,
    }
