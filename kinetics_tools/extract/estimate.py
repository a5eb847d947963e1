"""What a run of extract-flow will cost: frame pairs, and the time they take on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kinetics_tools.core.errors import MediaError, lookup
from kinetics_tools.core.files import make_folder
from kinetics_tools.extract.clips import Clip
from kinetics_tools.extract.plan import MIN_FRAMES, MIN_SIDE_PX, ExtractPlan, ShardUnit
from kinetics_tools.extract.run import prepare
from kinetics_tools.extract.worker import keep_to_one_thread
from kinetics_tools.flow.codecs import CODECS, too_large_for
from kinetics_tools.flow.methods import find_devices, make_method, quantise, stream
from kinetics_tools.media import decode
from kinetics_tools.media.clips import conform, conforming_frames, cut
from kinetics_tools.media.opencv import gray

NUM_PROBED = 32  # clips whose lengths stand for all others
PROBE_S = 3.0  # no further clip is probed after so long: one without a length is decoded
NUM_MEASURED = 4  # clips whose flow is timed
MEASURED_S = 2  # how much of each is made into a sample
BUDGET_S = 3.0  # how long flow is timed, if each clip's first pair takes no longer

Fields = Sequence[npt.NDArray[np.float32]]


def estimate_pairs(units: Sequence[ShardUnit], plan: ExtractPlan) -> int:
    """About how many frame pairs the clips of some shards have.

    The ledger says how many frames a clip has; for clips without that, some headers are read and
    stand for all.
    """
    clips = [clip for unit in units for clip in unit.clips if clip.sha256 is not None]
    unknown = [clip for clip in clips if clip.frames is None]
    known = sum(max(clip.frames - 1, 0) for clip in clips if clip.frames is not None)
    end = time.perf_counter() + PROBE_S
    probed: list[float] = []
    for clip in unknown[:: -(-len(unknown) // NUM_PROBED) or 1]:
        probed.append(_probed_pairs(clip, plan))
        if time.perf_counter() > end:
            break
    return known + (round(sum(probed) / len(probed) * len(unknown)) if probed else 0)


def _probed_pairs(clip: Clip, plan: ExtractPlan) -> float:
    try:
        video = decode.probe(clip.path)
        seconds = video.duration_s
        if seconds is None:
            seconds = decode.count_frames(clip.path) / (video.fps or Fraction(plan.rgb.fps))
    except MediaError:
        return 0.0
    return max(float(seconds * plan.rgb.fps) - 1, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What frame pairs cost on this machine, as measured.

    Attributes:
        device: that computed them, as torch names it.
        num_clips: that were measured.
        num_pairs: that were measured.
        flow_s: seconds per pair on the device.
        store_s: seconds per pair on one processor, to decode the frame and to encode the field.
        rgb_s: seconds per pair on one processor, to make the sample's RGB, or to find that the clip
            can be kept as it is.
    """

    device: str
    num_clips: int
    num_pairs: int
    flow_s: float
    store_s: float
    rgb_s: float

    def seconds(self, num_pairs: int, *, jobs: int, num_gpus: int, rgb_share: float = 1.0) -> float:
        """Seconds for so many pairs, if no job slows another.

        Args:
            num_pairs: to be computed.
            jobs: processors at work.
            num_gpus: that share the flow; 0 if the processors compute it.
            rgb_share: share of the pairs whose RGB is to be made, from 0 to 1.
        """
        rgb_s = self.rgb_s * rgb_share / jobs
        if self.device == "cpu":
            return num_pairs * (rgb_s + (self.flow_s + self.store_s) / jobs)
        # A shard's RGB comes first; then processors decode and encode while the GPU computes.
        return num_pairs * (rgb_s + max(self.flow_s / num_gpus, self.store_s / jobs))


def measure(units: Sequence[ShardUnit], plan: ExtractPlan) -> Rate | None:
    """Time the first clips of some shards, for a few seconds; None if no clip can be decoded.

    Their beginnings are made into samples at the recipe's size, in a scratch folder, and their flow
    is computed and encoded, as a worker does it. Compiling is not timed.

    Raises:
        KineticsError: this machine does not have the device.
        OSError: the disk is full.
    """
    (device, *_) = find_devices(plan.devices[0], make_method(plan.flow.method))
    prepare(plan)
    keep_to_one_thread(device)
    codec = lookup("flow codec", plan.flow.codec, CODECS)
    rate = Rate(device=device, num_clips=0, num_pairs=0, flow_s=0.0, store_s=0.0, rgb_s=0.0)
    clips = (clip for unit in units for clip in unit.clips if clip.sha256 is not None)
    if plan.tmp_dir is not None:
        make_folder(plan.tmp_dir)
    with tempfile.TemporaryDirectory(dir=plan.tmp_dir) as folder:
        for frames, decode_s, rgb_s in islice(_samples(clips, plan, Path(folder)), NUM_MEASURED):
            if rate.num_clips == 0:
                list(stream(frames[:MIN_FRAMES], plan.flow.method, device))
            start = time.perf_counter()
            fields = _some_flow(frames, plan, device)
            flow_s = time.perf_counter() - start
            start = time.perf_counter()
            codec.encode(quantise(field, bound=plan.flow.bound) for field in fields)
            share = len(fields) / len(frames)
            rate = replace(
                rate,
                num_clips=rate.num_clips + 1,
                num_pairs=rate.num_pairs + len(fields),
                flow_s=rate.flow_s + flow_s,
                store_s=rate.store_s + time.perf_counter() - start + decode_s * share,
                rgb_s=rate.rgb_s + rgb_s * share,
            )
    pairs = rate.num_pairs
    if not pairs:
        return None
    return replace(
        rate, flow_s=rate.flow_s / pairs, store_s=rate.store_s / pairs, rgb_s=rate.rgb_s / pairs
    )


def _some_flow(frames: Sequence[npt.NDArray[np.uint8]], plan: ExtractPlan, device: str) -> Fields:
    """The flow of a clip's first pairs: at least one, and no more after its share of the time."""
    end = time.perf_counter() + BUDGET_S / NUM_MEASURED
    fields = []
    for field in stream(frames, plan.flow.method, device):
        fields.append(field)
        if time.perf_counter() > end:
            break
    return fields


def _samples(
    clips: Iterator[Clip], plan: ExtractPlan, folder: Path
) -> Iterator[tuple[list[npt.NDArray[np.uint8]], float, float]]:
    """Yield for each usable clip its grey frames, the seconds to decode and to make them."""
    for clip in clips:
        path = folder / f"{clip.key}.mp4"
        start = time.perf_counter()
        most = MEASURED_S * plan.rgb.fps + 1
        try:
            if conforming_frames(clip.path, plan.rgb, most=most):
                path = clip.path
            else:
                _write_beginning(clip.path, path, plan)
            made = time.perf_counter()
            frames = [gray(frame) for frame in islice(decode.frames(path), most)]
        except MediaError:
            continue  # the run will report it
        decoded = time.perf_counter()
        if len(frames) < MIN_FRAMES or min(frames[0].shape) < MIN_SIDE_PX:
            continue
        if not too_large_for(*frames[0].shape):
            yield frames, decoded - made, made - start


def _write_beginning(video: Path, sample: Path, plan: ExtractPlan) -> None:
    end_s = Fraction(MEASURED_S)
    try:
        cut(video, sample, start_s=Fraction(0), end_s=end_s, recipe=plan.rgb, binary=plan.binary)
    except MediaError:  # it is shorter than that
        conform(video, sample, recipe=plan.rgb, binary=plan.binary)
