"""The stage from clips to shards: RGB samples, and flow computed from exactly those samples.

A unit is one shard. Its RGB is made first, unless it is current, and its flow from the very frames
that its RGB decodes to: so both always match, and a second method needs no clips. One bad clip
leaves a gap with a reason; it never stops a run.
"""

import contextlib
import hashlib
import logging
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kinetics_tools import engine, media, sharding, shards
from kinetics_tools.ahead import read_ahead
from kinetics_tools.clips import MISSING, Clip, ClipSet
from kinetics_tools.codecs import CODECS, Codec, too_large_for
from kinetics_tools.engine import WHOLE, Crash, Lent, Part
from kinetics_tools.errors import (
    KineticsError,
    MediaError,
    OutError,
    Reason,
    ShardError,
    lookup,
)
from kinetics_tools.files import (
    digest,
    file_digest,
    hold,
    make_folder,
    naming,
    scratch_folder,
    sweep,
)
from kinetics_tools.flow import FlowRecipe, find_devices, make_method, quantise, stream
from kinetics_tools.media import ClipRecipe
from kinetics_tools.opencv import gray
from kinetics_tools.sharding import Content, Member, Sidecar
from kinetics_tools.shards import RGB, RGB_EXT, Location, shard_path

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

MIN_FRAMES = 2  # fewer have no flow
MIN_SIDE_PX = 4  # smaller pictures have no neighbourhood to speak of, and methods differ in them
# Of each clip at work, so much may lie decoded, and so much computed: more than ten seconds have at
# 340x256, so that the device goes on to the next clip while the last one is being encoded.
AHEAD_BYTES = 64 * 2**20
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
        devices: as torch names them; each GPU has one process. With the engine ray "auto", "cuda"
            or "cpu", which each task's node makes a device of.
        binary: the ffmpeg program.
        samples_per_shard: expected keys in a shard.
        seed: of the order of keys.
        force: make every shard anew.
        part: which share of the shards.
        jobs: clips at once on this machine; on a CPU each has a process as long as there are enough
            shards, on GPUs they are threads of the GPU's process. None for one a processor; 0 works
            in this process. With the engine ray: shards at once, None for what the cluster can do.
            The shards' bytes do not depend on it.
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
    jobs: int | None = 1
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

    @property
    def num_bytes(self) -> int:
        """Of its clips' files: about how much work it is."""
        total = 0
        for clip in self.clips:
            with contextlib.suppress(FileNotFoundError):  # since they were listed
                total += clip.path.stat().st_size
        return total

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
        devices: of the flow shards, how many by the kind of device that computed them.
    """

    num_expected: int
    num_samples: int
    num_pairs: int
    gaps: Mapping[str, int]
    num_retryable: int
    num_made: int = 0
    seconds: float = 0.0
    is_indexed: bool = False
    devices: Mapping[str, int] = field(default_factory=dict)


Finished = Iterator[tuple[Unit, Any]]


def extract(
    clips: ClipSet, plan: Plan, *, show: Callable[[Finished, int], Iterable[tuple[Unit, Any]]]
) -> Summary:
    """Make the shards that are not current; safe to call again at any time.

    Args:
        clips: what OUT is to hold of the splits that they are of.
        plan: how.
        show: wraps the iterator of finished units, given how many samples they will have, to
            show progress.

    Raises:
        OutError: OUT is in use, or holds shards of other labels or another recipe.
        ShardError: it holds something that breaks the schema.
    """
    start = time.monotonic()
    with hold(plan.out, str(plan.part)):
        units = units_of(clips.clips, plan)
        sweep(plan.out)
        if not plan.force:
            _refuse_other_clips(units, plan)
        counts = _claim(units, plan)
        for split, count in counts.items():
            sharding.remove_beyond(plan.out, split, count["shards"])
        # The largest first: so all processes end at about the same time.
        todo = sorted(pending(units, plan), key=lambda unit: -unit.num_bytes)
        _say_what_is_made_anew(todo, plan)
        num_made = 0
        crashed = set()
        with (
            scratch_folder(plan.tmp_dir or plan.out) as scratch,
            closing(_made(todo, plan, scratch)) as finished,
        ):
            for unit, result in show(finished, sum(len(unit.clips) for unit in todo)):
                if isinstance(result, Crash):
                    logger.warning("%s: left to the next run: %s", unit, result.detail)
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


def _made(todo: Sequence[Unit], plan: Plan, scratch: Path) -> engine.Results[Unit, int]:
    """Make the shards; yield each when it is made."""
    devices, jobs = plan.devices, plan.jobs
    if plan.engine == "local":
        if todo:
            prepare(plan)
        if jobs is None:
            jobs = engine.num_processors()
        if devices == ("cpu",):
            devices *= max(jobs, 1)
        devices = devices[: max(len(todo), 1)]
    work = partial(make_shard, plan=plan, scratch=scratch)
    return engine.run(todo, work, jobs=jobs, engine=plan.engine, devices=devices)


def prepare(plan: Plan) -> None:
    """Let the method compile what it has to, once: the processes then find it in its cache."""
    if "cpu" in plan.devices:
        make_method(plan.flow.method).prepare("cpu")


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
    )
    return counts


def _refuse_other_clips(units: Iterable[Unit], plan: Plan) -> None:
    """Raise OutError where shards hold clips that are no longer expected; a set may grow."""
    expected: dict[str, set[str]] = {}
    for unit in units:
        expected.setdefault(unit.split, set()).update(clip.key for clip in unit.clips)
    for split, keys in expected.items():
        lost = sharding.keys_there(plan.out, split) - keys
        if lost:
            raise OutError(
                f"{plan.out}: the shards of split {split} are also of {len(lost)} clips that CLIPS "
                f"does not name now, such as {min(lost)}; give the same CLIPS, another OUT, or "
                "--force"
            )


def _say_what_is_made_anew(todo: Iterable[Unit], plan: Plan) -> None:
    shards = [unit.shard(plan, RGB) for unit in todo if unit.current_rgb(plan) is None]
    num_anew = sum(shard.exists() for shard in shards)
    if num_anew and not plan.force:
        logger.info(
            "%d shards that are there are made anew, with all of their flow: their clips are not "
            "the same any more (new keys move others from shard to shard)",
            num_anew,
        )


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
    devices: Counter[str] = Counter()
    num_expected = num_samples = num_pairs = 0
    for unit in units:
        num_expected += len(unit.clips)
        rgb = unit.current_rgb(plan)
        flow = None if rgb is None else unit.current_flow(plan, rgb)
        if rgb is None or flow is None:
            gaps[CRASHED] += len(unit.clips)
            continue
        devices[flow.device] += 1
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
        devices=dict(sorted(devices.items())),
    )


# What a worker process does


class _Unmakeable(Exception):
    """A shard cannot be made now, for a reason that is not its clips'; the next run may."""


def make_shard(unit: Unit, *, plan: Plan, scratch: Path, lent: Lent) -> int | Crash:
    """Make a unit's RGB, unless it is current, then its flow; return the frame pairs computed.

    A Crash says why neither is published: a clip that changed or went away since it was listed, an
    ffmpeg that was killed, a damaged shard of RGB.

    Args:
        unit: the shard.
        plan: how.
        scratch: folder for files that do not outlive the run.
        lent: the device, and how many of the shard's clips are worked on at once.

    Raises:
        KineticsError: this machine has no such device, or another version of the method.
        OSError: the disk is full.
    """
    make_folder(scratch)
    # A name of its own: whoever was believed lost with its node may still be at the same shard.
    folder = Path(tempfile.mkdtemp(prefix=f"{unit.split}-{unit.number}-", dir=scratch))
    try:
        rgb = None if plan.force else unit.current_rgb(plan)
        if rgb is None:
            rgb = _make_rgb(unit, plan, folder, lent)
        if not plan.force and unit.current_flow(plan, rgb) is not None:
            return 0
        return _make_flow(unit, rgb, plan, folder, lent)
    except _Unmakeable as error:
        return Crash(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_order(work: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """The work's results; so many threads are at it at once."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))  # after an error nothing new is begun


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    detail: str


def _make_rgb(unit: Unit, plan: Plan, folder: Path, lent: Lent) -> Sidecar:
    work = partial(_rgb_content, plan=plan, folder=folder)
    results = _in_order(work, unit.clips, lent.threads)
    shard = unit.shard(plan, RGB)
    contents = [result for result in results if isinstance(result, Content)]
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
            clip.key: {"reason": str(result.reason), "detail": result.detail}
            for clip, result in zip(unit.clips, results, strict=True)
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
        path, num_frames = clip.path, media.conforming_frames(clip.path, plan.rgb)
        if not num_frames:
            path = folder / f"{clip.key}.{RGB_EXT}"
            cut = media.conform(clip.path, path, recipe=plan.rgb, binary=plan.binary)
            num_frames = cut.num_frames
        video = media.probe(path)
    except MediaError as error:
        detail = error.detail.replace(str(clip.path.absolute()), clip.source)
        _refuse_passing(clip, error.reason, detail)
        return _Failure(error.reason, detail)
    if num_frames < MIN_FRAMES:
        return _Failure(Reason.TOO_SHORT, f"has {num_frames} frames, flow needs {MIN_FRAMES}")
    if min(video.width, video.height) < MIN_SIDE_PX:
        detail = f"is {video.width}x{video.height} pixels, flow needs {MIN_SIDE_PX} a side"
        return _Failure(Reason.DAMAGED, detail)
    # For any codec, not only this flow's: another flow may come beside it at any time.
    refusing = too_large_for(video.height, video.width)
    if refusing:
        detail = f"is {video.width}x{video.height} pixels, too large to store its flow as "
        return _Failure(Reason.DAMAGED, detail + ", ".join(refusing))
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


def _refuse_passing(clip: Clip, reason: str, detail: str) -> None:
    """Raise _Unmakeable where a clip failed for a reason that may pass: no gap may come of it.

    Raises:
        OSError: the clip cannot be read.
    """
    if reason == Reason.KILLED:
        raise _Unmakeable(f"{clip.source}: {detail}; if memory was short, give fewer --jobs")
    if not clip.path.is_file():
        raise _Unmakeable(f"{clip.source} is not there any more ({detail})")
    if file_digest(clip.path) != clip.sha256:
        raise _Unmakeable(
            f"{clip.source} is not the file that was listed ({detail}); for clips of "
            "kinetics-download, its verb verify finds what changed on disk"
        )


def _make_flow(unit: Unit, rgb: Sidecar, plan: Plan, folder: Path, lent: Lent) -> int:
    method = make_method(plan.flow.method)
    _same_as_begun(f"method {plan.flow.method}", method.as_json(), plan.flow.parameters)
    (device, *_) = find_devices(lent.device, method)
    keep_to_one_thread(device)
    desk = _Desk(
        device=device,
        turn=nullcontext() if device == "cpu" else threading.Lock(),
        threads=max(lent.threads // max(len(rgb.members), 1), 1),
    )
    work = partial(_flow_content, plan=plan, shard=unit.shard(plan, RGB), folder=folder, desk=desk)
    contents = _in_order(work, rgb.members, lent.threads)
    shard = unit.shard(plan, plan.stream)
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
        device=device.partition(":")[0],
    ).write(shard)
    return sum(member.frames - 1 for member in members)


def _same_as_begun(what: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    if here != there:
        raise KineticsError(
            f"{what} is not the same on this machine ({here}) as where the run began ({there}); "
            "install the same versions on all"
        )


def keep_to_one_thread(device: str) -> None:
    """Keep torch to the thread that calls it: those that share a small frame wait for another.

    On a CPU flow is computed without torch, and nobody waits for its import.
    """
    if device == "cpu":
        return
    import torch

    torch.set_num_threads(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """Where the clips of a shard have their flow computed.

    Attributes:
        device: as torch names it.
        turn: held by the clip that is computed: on a GPU one after the other, each with all of its
            memory; on processors they do not meet.
        threads: for a clip.
    """

    device: str
    turn: AbstractContextManager[object]
    threads: int


def _flow_content(member: Member, *, plan: Plan, shard: Path, folder: Path, desk: _Desk) -> Content:
    """The flow of one RGB sample, in a scratch file."""
    recipe = plan.flow
    codec = lookup("flow codec", recipe.codec, CODECS)
    _same_as_begun(f"codec {recipe.codec}", codec.as_json(), recipe.codec_parameters)
    name = f"{member.key}.{RGB_EXT}"
    where = f"{shard}, sample {member.key}"
    try:
        data = Location(str(shard), name, member.offset, member.size, member.sha256).read()
        stored, num_fields = _encoded_flow(data, recipe, codec, desk)
    except ShardError as error:
        raise _Unmakeable(str(error)) from error
    except MediaError as error:
        raise _Unmakeable(f"{where}: {error.detail}; remove the shard") from error
    if num_fields != member.frames - 1:
        raise _Unmakeable(
            f"{where}: {num_fields + 1} frames, its sidecar says {member.frames}; remove the shard"
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
            "codec_parameters": dict(recipe.codec_parameters),
            "recipe": recipe.hash,
        },
    )


def _encoded_flow(data: bytes, recipe: FlowRecipe, codec: Codec, desk: _Desk) -> tuple[bytes, int]:
    """The flow of an RGB member as it is stored, and how many fields that is.

    Decoding and computing run ahead in a thread each, AHEAD_BYTES at most, and this one encodes, so
    that a GPU need not wait for either.
    """
    num_fields = 0

    def computed() -> Codes:
        with closing(_ahead(gray(frame) for frame in media.frames(data))) as frames:
            first = list(islice(frames, 1))  # it is decoded while others have their turn
            grays = chain(first, frames)
            with desk.turn:
                for flow in stream(grays, recipe.method, desk.device, threads=desk.threads):
                    yield quantise(flow, bound=recipe.bound)

    def counted() -> Codes:
        nonlocal num_fields
        with closing(_ahead(computed())) as fields:
            for codes in fields:
                num_fields += 1
                yield codes

    with closing(counted()) as fields:
        stored = codec.encode(fields)  # field by field: a clip may be hours long
    return stored, num_fields


Codes = Generator[npt.NDArray[np.uint8], None, None]


def _ahead(arrays: Codes) -> Codes:
    return read_ahead(
        arrays, lambda array: array.nbytes, max_items=sys.maxsize, max_bytes=AHEAD_BYTES
    )
