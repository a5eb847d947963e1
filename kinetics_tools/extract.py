"""The stage from clips to shards: RGB samples, and flow computed from exactly those samples.

A unit is one shard. Its RGB is made first, unless it is current, and its flow from the very frames
that its RGB decodes to: so both always match, and a second method needs no clips. One bad clip
leaves a gap with a reason; it never stops a run.
"""

import hashlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_tools import engine, media, sharding, shards
from kinetics_tools.clips import MISSING, Clip, ClipSet
from kinetics_tools.codecs import CODECS
from kinetics_tools.engine import WHOLE, Crash, Part
from kinetics_tools.errors import (
    KineticsError,
    MediaError,
    Reason,
    ShardError,
    lookup,
)
from kinetics_tools.files import digest, hold, naming, scratch_folder, sweep
from kinetics_tools.flow import FlowRecipe, make_method, quantise, stream
from kinetics_tools.media import ClipRecipe
from kinetics_tools.opencv import gray
from kinetics_tools.sharding import Content, Member, Sidecar
from kinetics_tools.shards import RGB, RGB_EXT, Location, shard_path

logger = logging.getLogger(__name__)

MIN_FRAMES = 2  # fewer have no flow
MIN_SIDE_PX = 4  # smaller pictures have no neighbourhood to speak of, and methods differ in them
NUM_PROBED = 32  # clips that a dry run decodes to say how long the others may be
CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a run makes shards. Sent to every worker process.

    Attributes:
        out: the folder to fill.
        labels: the dataset's full list.
        rgb: recipe of the RGB samples.
        flow: recipe of the flow.
        name: of the flow.
        devices: as torch names them; shards take turns.
        binary: the ffmpeg program.
        samples_per_shard: expected keys in a shard.
        seed: of the order of keys.
        force: make every shard anew.
        part: which share of the shards.
        jobs: processes at once; the shards' bytes do not depend on it.
        engine: a name in `engine.ENGINES`.
        tmp_dir: for scratch files; None for beside the shards.
    """

    out: Path
    labels: tuple[str, ...]
    rgb: ClipRecipe
    flow: FlowRecipe
    name: str
    binary: Path
    devices: tuple[str, ...] = ("cpu",)
    samples_per_shard: int = 64
    seed: int = 0
    force: bool = False
    part: Part = WHOLE
    jobs: int = 1
    engine: str = "local"
    tmp_dir: Path | None = None

    @property
    def stream(self) -> str:
        """The flow's stream."""
        return shards.flow_stream(self.name)


@dataclass(frozen=True, slots=True)
class Unit:
    """One shard to be: its clips, in order."""

    split: str
    number: int
    clips: tuple[Clip, ...] = field(repr=False)

    def shard(self, plan: Plan, name: str) -> Path:
        """Where its tar of the stream `name` lies."""
        return shard_path(plan.out, self.split, name, self.number)

    def rgb_inputs(self, plan: Plan) -> str:
        """Digest of everything that its RGB is made from."""
        clips = [[c.key, c.label, c.source, c.sha256 or c.reason] for c in self.clips]
        return digest({"recipe": plan.rgb.as_json(), "labels": plan.labels, "clips": clips})

    def flow_inputs(self, plan: Plan, rgb: Sidecar) -> str:
        """Digest of everything that its flow is made from."""
        members = [[m.key, m.label, m.frames, m.sha256] for m in rgb.members]
        keys = list(rgb.keys)
        recipe = plan.flow.as_json()
        return digest({"recipe": recipe, "labels": plan.labels, "keys": keys, "rgb": members})

    def current_rgb(self, plan: Plan) -> Sidecar | None:
        """The sidecar of its RGB, if that need not be made."""
        sidecar = Sidecar.read(self.shard(plan, RGB))
        if sidecar is None or not sidecar.is_current(self.shard(plan, RGB), self.rgb_inputs(plan)):
            return None
        return sidecar

    def current_flow(self, plan: Plan, rgb: Sidecar) -> Sidecar | None:
        """The sidecar of its flow, if that need not be made."""
        shard = self.shard(plan, plan.stream)
        sidecar = Sidecar.read(shard)
        if sidecar is None or not sidecar.is_current(shard, self.flow_inputs(plan, rgb)):
            return None
        return sidecar

    def is_done(self, plan: Plan) -> bool:
        """Whether RGB and flow are current."""
        rgb = self.current_rgb(plan)
        return rgb is not None and self.current_flow(plan, rgb) is not None


def units_of(clips: Iterable[Clip], plan: Plan) -> list[Unit]:
    """All shards to be, of all parts.

    Which keys share a shard follows from the expected keys alone, so nothing moves when a missing
    clip turns up; their order is that of a seeded hash, so that every shard mixes classes.
    """
    splits: dict[str, list[Clip]] = {}
    for clip in clips:
        splits.setdefault(clip.split, []).append(clip)
    units = []
    for split, own in sorted(splits.items()):
        own.sort(key=lambda c: hashlib.sha256(f"{plan.seed}:{c.key}".encode()).digest())
        for number, start in enumerate(range(0, len(own), plan.samples_per_shard)):
            units.append(Unit(split, number, tuple(own[start : start + plan.samples_per_shard])))
    return units


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a part stands after a run.

    Attributes:
        num_expected: samples of this part.
        num_samples: of them, with RGB and flow.
        num_pairs: their frame pairs.
        gaps: of the others, how many by reason.
        num_retryable: of the others, how many may come with another run.
        num_made: frame pairs whose flow this run computed.
        seconds: that this run took.
        is_indexed: whether all parts are done and the index is written.
    """

    num_expected: int
    num_samples: int
    num_pairs: int
    gaps: Mapping[str, int]
    num_retryable: int
    num_made: int = 0
    seconds: float = 0.0
    is_indexed: bool = False


Finished = Iterator[tuple[Unit, Any]]


def extract(
    clips: ClipSet, plan: Plan, *, show: Callable[[Finished, int], Iterable[tuple[Unit, Any]]]
) -> Summary:
    """Make the shards that are not current; safe to call again at any time.

    Args:
        clips: what OUT is to hold of the splits that they are of.
        plan: how.
        show: wraps the iterator of finished units, given how many there will be, to show progress.

    Raises:
        OutError: OUT is in use, or holds shards of other labels or another recipe.
        ShardError: it holds something that breaks the schema.
    """
    start = time.monotonic()
    with hold(plan.out, str(plan.part)):
        units = units_of(clips.clips, plan)
        sweep(plan.out)
        counts = _claim(units, plan)
        for split, count in counts.items():
            sharding.remove_beyond(plan.out, split, count["shards"])
        todo = pending(units, plan)
        num_made = 0
        crashed = set()
        jobs = min(plan.jobs, max(len(todo), 1))
        with (
            scratch_folder(plan.tmp_dir or plan.out) as scratch,
            closing(
                engine.run(
                    todo,
                    partial(
                        make_shard, plan=plan, scratch=scratch, helpers=plan.jobs // max(jobs, 1)
                    ),
                    jobs=jobs,
                    engine=plan.engine,
                )
            ) as finished,
        ):
            for unit, result in show(finished, len(todo)):
                if isinstance(result, Crash):
                    logger.warning(
                        "%s: %s; the shard is left to the next run, with fewer --jobs if memory "
                        "was short",
                        unit,
                        result.detail,
                    )
                    crashed.add((unit.split, unit.number))
                else:
                    num_made += result
        is_indexed = all(
            (unit.split, unit.number) in crashed or unit.is_done(plan) for unit in units
        )
        if is_indexed:
            sharding.write_index(plan.out)
    return summarise(
        plan.part.of(units),
        plan,
        num_made=num_made,
        seconds=time.monotonic() - start,
        is_indexed=is_indexed,
    )


def pending(units: Sequence[Unit], plan: Plan) -> list[Unit]:
    """This part's units that are to be made."""
    return [unit for unit in plan.part.of(units) if plan.force or not unit.is_done(plan)]


def _claim(units: Sequence[Unit], plan: Plan) -> dict[str, dict[str, int]]:
    """Write down what OUT will hold; return expected samples and shards by split."""
    counts: dict[str, dict[str, int]] = {}
    for unit in units:
        count = counts.setdefault(unit.split, {"expected": 0, "shards": 0})
        count["expected"] += len(unit.clips)
        count["shards"] += 1
    keys: dict[str, list[str]] = {}
    for unit in units:
        keys.setdefault(unit.split, []).extend(clip.key for clip in unit.clips)
    sharding.claim(
        plan.out,
        labels=plan.labels,
        layout={"samples_per_shard": plan.samples_per_shard, "seed": plan.seed},
        recipes={RGB: plan.rgb.as_json(), plan.stream: plan.flow.as_json()},
        splits={split: {**counts[split], "keys": digest(keys[split])} for split in counts},
        force=plan.force,
    )
    return counts


def summarise(
    units: Iterable[Unit],
    plan: Plan,
    *,
    num_made: int = 0,
    seconds: float = 0.0,
    is_indexed: bool = False,
) -> Summary:
    """How some units stand, from their sidecars."""
    gaps: Counter[str] = Counter()
    num_expected = num_samples = num_pairs = 0
    for unit in units:
        num_expected += len(unit.clips)
        rgb = unit.current_rgb(plan)
        flow = None if rgb is None else unit.current_flow(plan, rgb)
        if rgb is None or flow is None:
            gaps[CRASHED] += len(unit.clips)
            continue
        num_samples += len(flow.members)
        num_pairs += sum(member.frames - 1 for member in flow.members)
        gaps.update(failure["reason"] for failure in rgb.failed.values())
    return Summary(
        num_expected=num_expected,
        num_samples=num_samples,
        num_pairs=num_pairs,
        gaps=dict(sorted(gaps.items())),
        num_retryable=gaps[MISSING] + gaps[CRASHED],  # a damaged file stays as it is
        num_made=num_made,
        seconds=seconds,
        is_indexed=is_indexed,
    )


def estimate_pairs(units: Sequence[Unit], plan: Plan) -> int:
    """About how many frame pairs the clips of some units have.

    Frames are as the ledger has them; where it has none, some clips are decoded and speak for all.
    """
    clips = [clip for unit in units for clip in unit.clips if clip.sha256 is not None]
    unknown = [clip for clip in clips if clip.frames is None]
    known = sum(max(clip.frames - 1, 0) for clip in clips if clip.frames is not None)
    probed = [
        _decoded_pairs(clip, plan) for clip in unknown[:: -(-len(unknown) // NUM_PROBED) or 1]
    ]
    return known + (round(sum(probed) / len(probed) * len(unknown)) if probed else 0)


def _decoded_pairs(clip: Clip, plan: Plan) -> float:
    try:
        rate = media.probe(clip.path).fps or plan.rgb.fps
        return max(float(media.count_frames(clip.path) / rate * plan.rgb.fps) - 1, 0.0)
    except MediaError:
        return 0.0


# What a worker process does


def make_shard(unit: Unit, *, plan: Plan, scratch: Path, helpers: int = 1) -> int | Crash:
    """Make a unit's RGB, unless it is current, then its flow; return the frame pairs computed.

    A Crash instead says that a helper died (out of memory, say): the shard is left to another run.

    Args:
        unit: the shard.
        plan: how.
        scratch: folder for files that do not outlive the run.
        helpers: processes to share the shard's clips, where there are fewer shards than processors.

    Raises:
        OSError: the disk is full.
    """
    folder = scratch / f"{unit.split}-{unit.number}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        rgb = None if plan.force else unit.current_rgb(plan)
        if rgb is None:
            rgb = _make_rgb(unit, plan, folder, helpers)
        if not plan.force and unit.current_flow(plan, rgb) is not None:
            return 0
        return _make_flow(unit, rgb, plan, folder, helpers)
    except _HelperDiedError as error:
        return Crash(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _HelperDiedError(Exception):
    """A process that shared the shard's clips died."""


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    detail: str


def _make_rgb(unit: Unit, plan: Plan, folder: Path, helpers: int) -> Sidecar:
    work = partial(_rgb_content, plan=plan, folder=folder)
    results: dict[str, Content | _Failure] = {}
    for clip, result in engine.run(unit.clips, work, jobs=helpers if helpers > 1 else 0):
        if isinstance(result, Crash):
            raise _HelperDiedError(f"{clip.key}: {result.detail}")
        results[clip.key] = result
    ordered = [(clip.key, results[clip.key]) for clip in unit.clips]
    shard = unit.shard(plan, RGB)
    contents = [result for _, result in ordered if isinstance(result, Content)]
    size, members = sharding.write_shard(shard, contents, ext=RGB_EXT, labels=plan.labels)
    sidecar = Sidecar(
        stream=RGB,
        split=unit.split,
        number=unit.number,
        size=size,
        recipe=digest(plan.rgb.as_json()),
        inputs=unit.rgb_inputs(plan),
        keys=tuple(clip.key for clip in unit.clips),
        members=members,
        failed={
            key: {"reason": str(result.reason), "detail": result.detail}
            for key, result in ordered
            if isinstance(result, _Failure)
        },
    )
    sidecar.write(shard)
    return sidecar


def _rgb_content(clip: Clip, *, plan: Plan, folder: Path) -> Content | _Failure:
    """A clip as its sample: byte for byte where it conforms, else encoded anew."""
    if clip.sha256 is None:
        return _Failure(clip.reason, f"no file {clip.source}")
    try:
        if media.conforms(clip.path, plan.rgb):
            path, num_frames = clip.path, media.count_frames(clip.path)
        else:
            path = folder / f"{clip.key}.{RGB_EXT}"
            cut = media.conform(clip.path, path, recipe=plan.rgb, binary=plan.binary)
            num_frames = cut.num_frames
        video = media.probe(path)
    except MediaError as error:
        return _Failure(error.reason, error.detail.replace(str(clip.path.absolute()), clip.source))
    if num_frames < MIN_FRAMES:
        return _Failure(Reason.TOO_SHORT, f"has {num_frames} frames, flow needs {MIN_FRAMES}")
    if min(video.width, video.height) < MIN_SIDE_PX:
        return _Failure(Reason.DAMAGED, f"is {video.width}x{video.height} pixels")
    return Content(
        key=clip.key,
        label=clip.label,
        frames=num_frames,
        path=path,
        made_from=clip.sha256,
        about={
            "source": clip.source,
            "width": video.width,
            "height": video.height,
            "fps": plan.rgb.fps,
            "recipe": digest(plan.rgb.as_json()),
        },
    )


def _make_flow(unit: Unit, rgb: Sidecar, plan: Plan, folder: Path, helpers: int) -> int:
    work = partial(
        _flow_content,
        plan=plan,
        shard=unit.shard(plan, RGB),
        folder=folder,
        device=plan.devices[unit.number % len(plan.devices)],
    )
    results: dict[str, Content] = {}
    for member, result in engine.run(rgb.members, work, jobs=helpers if helpers > 1 else 0):
        if isinstance(result, Crash):
            raise _HelperDiedError(f"{member.key}: {result.detail}")
        results[member.key] = result
    shard = unit.shard(plan, plan.stream)
    contents = [results[member.key] for member in rgb.members]
    ext = f"flow.{lookup('flow codec', plan.flow.codec, CODECS).ext}"
    size, members = sharding.write_shard(shard, contents, ext=ext, labels=plan.labels)
    Sidecar(
        stream=plan.stream,
        split=unit.split,
        number=unit.number,
        size=size,
        recipe=plan.flow.hash,
        inputs=unit.flow_inputs(plan, rgb),
        keys=rgb.keys,
        members=members,
        failed=rgb.failed,
    ).write(shard)
    return sum(member.frames - 1 for member in members)


def _flow_content(member: Member, *, plan: Plan, shard: Path, folder: Path, device: str) -> Content:
    """The flow of one RGB sample, in a scratch file."""
    recipe = plan.flow
    codec = lookup("flow codec", recipe.codec, CODECS)
    name = f"{member.key}.{RGB_EXT}"
    data = Location(str(shard), name, member.offset, member.size, member.sha256).read()
    num_fields = 0

    def counted() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal num_fields
        for codes in _flow_codes(data, recipe, device):
            num_fields += 1
            yield codes

    try:
        stored = codec.encode(counted())  # field by field: a clip may be hours long
    except MediaError as error:
        raise ShardError(
            f"{shard}, sample {member.key}: {error.detail}; remove the shard and run again"
        ) from error
    if num_fields != member.frames - 1:
        raise ShardError(
            f"{shard}, sample {member.key}: {num_fields + 1} frames, its sidecar says "
            f"{member.frames}; remove the shard and run again"
        )
    path = folder / f"{member.key}.flow.{codec.ext}"
    with naming(path):
        path.write_bytes(stored)
    return Content(
        key=member.key,
        label=member.label,
        frames=member.frames,
        path=path,
        made_from=member.sha256,
        about={
            "rgb_sha256": member.sha256,
            "method": recipe.method,
            "bound": recipe.bound,
            "codec": recipe.codec,
            "recipe": recipe.hash,
        },
    )


def _flow_codes(data: bytes, recipe: FlowRecipe, device: str) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the flow codes (H, W, 2) of a video's frame pairs."""
    import torch

    # Parallelism is across clips: threads that share a small frame mostly wait for one another.
    torch.set_num_threads(1)
    here = make_method(recipe.method).as_json()
    if here != recipe.parameters:
        raise KineticsError(
            f"method {recipe.method} is not the same on this machine ({here}) as where the run "
            f"began ({recipe.parameters}); install the same versions on all"
        )
    for flow in stream((gray(frame) for frame in media.frames(data)), recipe.method, device):
        yield quantise(flow, bound=recipe.bound)
