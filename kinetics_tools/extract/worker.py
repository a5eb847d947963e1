"""What a worker process of extract-flow does: one shard, its RGB and then its flow."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kinetics_tools.core.errors import KineticsError, MediaError, Reason, ShardError, lookup
from kinetics_tools.core.files import digest, file_digest, make_folder, name_in_errors
from kinetics_tools.core.prefetch import prefetch
from kinetics_tools.core.units import Crash, WorkerResources
from kinetics_tools.extract.clips import Clip
from kinetics_tools.extract.plan import MIN_FRAMES, MIN_SIDE_PX, ExtractPlan, ShardUnit
from kinetics_tools.flow.codecs import CODECS, Codec, too_large_for
from kinetics_tools.flow.methods import FlowRecipe, find_devices, make_method, quantise, stream
from kinetics_tools.media import decode
from kinetics_tools.media.clips import conform, conforming_frames
from kinetics_tools.media.opencv import gray
from kinetics_tools.shards.records import (
    RGB,
    RGB_EXT,
    Failure,
    FolderRecords,
    ShardMember,
    Sidecar,
)
from kinetics_tools.shards.writer import SampleContent, write_shard

T = TypeVar("T")
R = TypeVar("R")
# So many bytes of a clip's frames may wait to be computed, and of its flow to be encoded: more than
# ten seconds take at 340x256, so that the GPU goes on to the next clip while this one is encoded.
PREFETCH_BYTES = 64 * 2**20

Codes = Generator[npt.NDArray[np.uint8], None, None]


class ShardRetryableError(Exception):
    """A shard cannot be made now, for a reason that is not in its clips; the next run may."""


def make_shard(
    unit: ShardUnit, *, plan: ExtractPlan, scratch: Path, resources: WorkerResources
) -> int | Crash:
    """Make a shard's RGB, unless it is current, then its flow; return the frame pairs computed.

    A Crash says why neither is published: a clip was changed or removed after it was listed, an
    ffmpeg was killed, a shard of RGB is damaged.

    Args:
        unit: the shard.
        plan: how.
        scratch: folder for files that are removed at the end.
        resources: the device, and how many of the shard's clips are worked on at once.

    Raises:
        KineticsError: this machine has no such device, or another version of the method.
        OSError: the disk is full.
    """
    make_folder(scratch)
    # A new name: a process that was believed lost with its node may still work on the same shard.
    folder = Path(tempfile.mkdtemp(prefix=f"{unit.split}-{unit.number}-", dir=scratch))
    records = FolderRecords(plan.out)
    try:
        rgb = None if plan.force else unit.current_rgb(plan, records)
        if rgb is None:
            rgb = _make_rgb(unit, plan, folder, resources)
        if not plan.force and unit.current_flow(plan, records, rgb):
            return 0
        return _make_flow(unit, rgb, plan, folder, resources)
    except ShardRetryableError as error:
        return Crash(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_order(work: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """The results of `work`, in the order of the items; `threads` of them are computed at once."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))  # after an error no new item is started


# RGB


def _make_rgb(
    unit: ShardUnit, plan: ExtractPlan, folder: Path, resources: WorkerResources
) -> Sidecar:
    work = partial(_rgb_content, plan=plan, folder=folder)
    results = _in_order(work, unit.clips, resources.threads)
    sidecar = Sidecar(
        stream=RGB,
        split=unit.split,
        number=unit.number,
        recipe=digest(plan.rgb.as_json()),
        inputs=unit.rgb_inputs(plan),
        keys=tuple(clip.key for clip in unit.clips),
        failed={
            clip.key: replace(result, label=clip.label)
            for clip, result in zip(unit.clips, results, strict=True)
            if isinstance(result, Failure)
        },
    )
    contents = [result for result in results if isinstance(result, SampleContent)]
    return write_shard(plan.out, sidecar, contents, ext=RGB_EXT, labels=plan.labels)


def _rgb_content(clip: Clip, *, plan: ExtractPlan, folder: Path) -> SampleContent | Failure:
    """A clip as its sample: byte for byte where it conforms to the recipe, else encoded again."""
    if clip.sha256 is None:
        is_there = clip.path.is_file()
        return Failure(clip.reason, f"{'cannot read' if is_there else 'no file'} {clip.source}")
    try:
        path, num_frames = clip.path, conforming_frames(clip.path, plan.rgb)
        if not num_frames:
            path = folder / f"{clip.key}.{RGB_EXT}"
            cut = conform(clip.path, path, recipe=plan.rgb, binary=plan.binary)
            num_frames = cut.num_frames
        video = decode.probe(path)
    except MediaError as error:
        detail = error.detail.replace(str(clip.path.absolute()), clip.source)
        _raise_if_retryable(clip, error.reason, detail)
        return Failure(error.reason, detail)
    if num_frames < MIN_FRAMES:
        return Failure(Reason.TOO_SHORT, f"has {num_frames} frames, flow needs {MIN_FRAMES}")
    if min(video.width, video.height) < MIN_SIDE_PX:
        detail = f"is {video.width}x{video.height} pixels, flow needs {MIN_SIDE_PX} a side"
        return Failure(Reason.DAMAGED, detail)
    # By any codec, not only this flow's: another flow may be added at any time.
    refusing = too_large_for(video.height, video.width)
    if refusing:
        detail = f"is {video.width}x{video.height} pixels, too large to store its flow as "
        return Failure(Reason.DAMAGED, detail + ", ".join(refusing))
    return SampleContent(
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


def _raise_if_retryable(clip: Clip, reason: str, detail: str) -> None:
    """Raise ShardRetryableError where a clip may succeed in the next run: it leaves no gap.

    Raises:
        OSError: the clip cannot be read.
    """
    if reason == Reason.KILLED:
        raise ShardRetryableError(
            f"{clip.source}: {detail}; if memory was short, give fewer --jobs"
        )
    if not clip.path.is_file():
        raise ShardRetryableError(f"{clip.source} was removed after it was listed ({detail})")
    if file_digest(clip.path) != clip.sha256:
        raise ShardRetryableError(
            f"{clip.source} is not the file that was listed ({detail}); if kinetics-download made "
            "it, kinetics-download verify finds what changed on disk"
        )


# Flow


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowDevice:
    """Where the flow of a shard's clips is computed.

    Attributes:
        device: as torch names it.
        lock: held while a clip is computed: a GPU computes one clip after the other, each with all
            of its memory; on a CPU it does nothing.
        threads: per clip.
    """

    device: str
    lock: AbstractContextManager[object]
    threads: int


def _make_flow(
    unit: ShardUnit, rgb: Sidecar, plan: ExtractPlan, folder: Path, resources: WorkerResources
) -> int:
    method = make_method(plan.flow.method)
    codec = lookup("flow codec", plan.flow.codec, CODECS)
    _require_same(f"method {plan.flow.method}", method.as_json(), plan.flow.parameters)
    _require_same(f"codec {plan.flow.codec}", codec.as_json(), plan.flow.codec_parameters)
    (device, *_) = find_devices(resources.device, method)
    keep_to_one_thread(device)
    work = partial(
        _flow_content,
        shard=rgb.shard(plan.out),
        recipe=plan.flow,
        codec=codec,
        flow_device=FlowDevice(
            device=device,
            lock=nullcontext() if device == "cpu" else threading.Lock(),
            threads=max(resources.threads // max(len(rgb.members), 1), 1),
        ),
        folder=folder,
    )
    contents = _in_order(work, rgb.members, resources.threads)
    sidecar = replace(
        rgb,
        stream=plan.stream,
        recipe=plan.flow.hash,
        inputs=unit.flow_inputs(plan, rgb),
        device=device.partition(":")[0],
    )
    ext = f"flow.{codec.ext}"
    flow = write_shard(plan.out, sidecar, contents, ext=ext, labels=plan.labels)
    return sum(member.frames - 1 for member in flow.members)


def _require_same(what: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    if here != there:
        raise KineticsError(
            f"{what} is not the same on this machine ({here}) as where the run began ({there}); "
            "install the same versions on all machines"
        )


def keep_to_one_thread(device: str) -> None:
    """Make torch compute with one thread, where a GPU is used: its threads would only wait.

    On a CPU flow is computed without torch, which then is not imported.
    """
    if device == "cpu":
        return
    import torch

    torch.set_num_threads(1)


def _flow_content(
    member: ShardMember,
    *,
    shard: Path,
    recipe: FlowRecipe,
    codec: Codec,
    flow_device: FlowDevice,
    folder: Path,
) -> SampleContent:
    """The flow of one RGB sample, in a scratch file."""
    where = f"{shard}, sample {member.key}"
    try:
        data = member.read(shard, RGB_EXT)
        stored, num_fields = _encoded_flow(data, recipe, codec, flow_device)
    except ShardError as error:
        raise ShardRetryableError(str(error)) from error
    except MediaError as error:
        raise ShardRetryableError(f"{where}: {error.detail}; move the shard away") from error
    if num_fields != member.frames - 1:
        raise ShardRetryableError(
            f"{where}: {num_fields + 1} frames, its sidecar says {member.frames}; move the shard "
            "away"
        )
    path = folder / f"{member.key}.flow.{codec.ext}"
    with name_in_errors(path):
        path.write_bytes(stored)
    return SampleContent(
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


def _encoded_flow(
    data: bytes, recipe: FlowRecipe, codec: Codec, flow_device: FlowDevice
) -> tuple[bytes, int]:
    """The flow of an RGB member as it is stored, and the number of its fields.

    One thread decodes, one computes and this one encodes, so that a GPU waits for neither.
    """
    num_fields = 0

    def counted() -> Codes:
        nonlocal num_fields
        with closing(_prefetched(_codes(data, recipe, flow_device))) as fields:
            for codes in fields:
                num_fields += 1
                yield codes

    with closing(counted()) as fields:
        stored = codec.encode(fields)  # field by field: a clip may be hours long
    return stored, num_fields


def _codes(data: bytes, recipe: FlowRecipe, flow_device: FlowDevice) -> Codes:
    """Yield the flow of an RGB member as codes: uint8 (H, W, 2)."""
    with closing(_prefetched(gray(frame) for frame in decode.frames(data))) as frames:
        first = list(islice(frames, 1))  # it is decoded while other clips hold the lock
        grays = chain(first, frames)
        with flow_device.lock:
            for flow in stream(
                grays, recipe.method, flow_device.device, threads=flow_device.threads
            ):
                yield quantise(flow, bound=recipe.bound)


def _prefetched(arrays: Codes) -> Codes:
    return prefetch(
        arrays, lambda array: array.nbytes, max_items=sys.maxsize, max_bytes=PREFETCH_BYTES
    )
