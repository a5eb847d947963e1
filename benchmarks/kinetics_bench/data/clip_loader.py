"""Clips for a training loop of your own: tensors, exact epochs, a state to go on from."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any, Final, Literal

import torch
from torch import Tensor

from kinetics_bench.archs.registry import CHANNELS, Sampling
from kinetics_bench.data import views
from kinetics_bench.data.inputs import Crops, network_inputs
from kinetics_bench.data.loader import (
    Batch,
    ClipDataset,
    Reader,
    epoch_order,
    random_view,
    read_batches,
    reading,
)
from kinetics_tools.core import schema
from kinetics_tools.core.files import digest
from kinetics_tools.shards.reader import Sample

STATE_VERSION: Final = 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """The arguments of a loader, of their types; as a `views.Framing`, what is seen of a clip."""

    streams: tuple[Literal["rgb", "flow"], ...]
    num_frames: schema.NumFrames
    stride: schema.NumFrames
    short_side: schema.Pixels
    crop_px: schema.Pixels
    batch_size: schema.Positive
    training: bool
    seed: int
    flip: schema.Share
    bound: schema.Amount
    rank: schema.Count
    num_processes: schema.Positive
    num_workers: schema.Count

    @property
    def sampling(self) -> Mapping[str, Sampling]:
        """The frames of a view, by stream."""
        return dict.fromkeys(self.streams, Sampling(self.num_frames, self.stride))

    @classmethod
    def of(cls, **given: Any) -> _Options:
        """The options, checked.

        Raises:
            ValueError: one is not what it may be.
        """
        if not isinstance(given["streams"], (list, tuple)) or not given["streams"]:
            raise ValueError(
                f"streams is a list of rgb, flow or both, not {given['streams']!r:.80}"
            )
        options = schema.parse(given, cls)
        if options.crop_px > options.short_side:
            raise ValueError(
                f"crop_px {options.crop_px} is more than short_side {options.short_side}"
            )
        if options.bound == 0:
            raise ValueError("bound is 0: it is a number of pixels per frame")
        if options.rank >= options.num_processes:
            raise ValueError(f"rank {options.rank} is not one of {options.num_processes} processes")
        in_order = tuple(stream for stream in CHANNELS if stream in options.streams)
        return replace(options, streams=in_order)


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """Where a loader is. Counts are over all processes, so that their number may change.

    Attributes:
        version: of these fields.
        epoch: the epoch that is read, from 0.
        clips: how many clips of it were given out.
        order: digest of the keys, the seed and whether they are shuffled: what `clips` counts in.
    """

    version: schema.Count
    epoch: schema.Count
    clips: schema.Count
    order: str


_FIELDS: Final = tuple(each.name for each in fields(_State))


class ClipLoader:
    """Batches of clips as dictionaries of tensors, each clip exactly once per epoch.

    It is for training loops that are not ours, and reads as a torch DataLoader does: `for batch in
    loader` is one epoch. `state_dict` and `load_state_dict` are those of torchdata's
    StatefulDataLoader, so that a library that knows that one can save and load this one.

    With several processes each clip goes to one of them, and all have the same number of batches:
    nothing is repeated and nothing is left out, so the last batch may be smaller. Where fewer clips
    than processes are left for it, they join the batch before. The order and each view depend on
    seed, epoch and key alone, not on workers.

    A batch may have no clip (B = 0) where none of its videos can be decoded, or where a state is
    loaded by more processes than clips were left. A loop with gradients of several processes must
    not skip it, since the others wait: give the loss as a sum, which is then 0.

    A batch is a dictionary:

    - `rgb`: float32 (B, 3, T, crop_px, crop_px) in [-1, 1], channels last in memory;
    - `flow`: float32 (B, 2, T, crop_px, crop_px) in [-1, 1]: x then y, +x right, +y down, where
      `bound` pixels per frame are 1 and what is beyond is clamped;
    - `label_id`: int64 (B,), if all samples have a label;
    - `number`: int64 (B,): places in `samples`, so `samples[number].key` is the key.

    Both streams of a clip have the same times, crop and flip: field t is the motion from frame t to
    the next frame of the video, and a flip negates x.

    Attributes:
        samples: the clips.
        dataset: the map-style torch dataset of views that is read, indexed by (epoch, number).
        epoch: the epoch that is read now, from 0; each `iter` begins the next one.
        failed: key -> why its video could not be decoded. Such a clip is left out of its batch and
            logged, so B is smaller there.
    """

    def __init__(  # noqa: PLR0913 - the options of a torch DataLoader, and of a view
        self,
        samples: Sequence[Sample],
        *,
        streams: Sequence[str] = ("rgb",),
        num_frames: int = 64,
        stride: int = 1,
        short_side: int = 256,
        crop_px: int = 224,
        batch_size: int = 8,
        training: bool = True,
        seed: int = 0,
        flip: float = 0.5,
        bound: float = 20.0,
        rank: int | None = None,
        num_processes: int | None = None,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """A loader of clips of equal length.

        Args:
            samples: the clips: those of `select(...)` or of `ShardFolder.samples`, read with all of
                `streams`.
            streams: `rgb`, `flow` or both.
            num_frames: T, the frames and fields of a view. A shorter clip is looped.
            stride: every so many frames of the clip.
            short_side: the frame's shorter side after resizing, pixels.
            crop_px: height and width of the crop, pixels.
            batch_size: clips per batch and process; the last batch of an epoch may have one more.
            training: random views in a random order; else the middle of each clip, cropped at the
                centre, in the order of `samples`.
            seed: decides order and views, together with epoch and key.
            flip: probability of a horizontal flip in training.
            bound: flow of so many pixels per frame becomes 1.
            rank: this process; None: that of torch.distributed or torchrun, else 0.
            num_processes: all processes; None: as `rank`.
            num_workers: processes that decode, for each epoch; 0: this one.
            device: where the tensors are made; from the workers come bytes.

        Raises:
            ValueError: an argument is not what it may be.
        """
        if (rank is None) != (num_processes is None):
            raise ValueError("rank and num_processes are given together, or none of them")
        if rank is None or num_processes is None:
            rank, num_processes = _place()
        options = _Options.of(
            streams=streams,
            num_frames=num_frames,
            stride=stride,
            short_side=short_side,
            crop_px=crop_px,
            batch_size=batch_size,
            training=training,
            seed=seed,
            flip=flip,
            bound=bound,
            rank=rank,
            num_processes=num_processes,
            num_workers=num_workers,
        )
        if not isinstance(samples, Sequence) or any(not hasattr(s, "rgb_at") for s in samples[:1]):
            raise ValueError("samples are those of select(...).samples or ShardFolder.samples(...)")
        if len(samples) < num_processes:
            raise ValueError(
                f"{len(samples)} clips for num_processes {num_processes}: each needs one or more"
            )
        view_of = partial(random_view, options, seed) if training else partial(_middle, options)
        known = [(s.key, s.label_id, _lacks(s, options.streams)) for s in samples]
        keys = [key for key, _, _ in known]
        lacking = next((key for key, _, lacks in known if lacks), None)
        if lacking is not None:
            raise ValueError(f"sample {lacking} was read without {' or '.join(options.streams)}")
        if len(set(keys)) < len(keys):
            raise ValueError("a key is there twice, of which the views would be the same")
        self.samples = samples
        self.dataset = ClipDataset(samples, Reader(options, bound), view_of)
        self.epoch = 0
        self.failed: dict[str, str] = {}
        self._has_labels = all(label_id is not None for _, label_id, _ in known)
        self._options = options
        self._device = torch.device(device)
        self._order = digest([keys, seed if training else None])
        self._clips = 0  # of this epoch, given out by all processes
        self._begins_next_epoch = False
        self._newest: object = None  # the iterator whose batches count

    def __len__(self) -> int:
        """Batches of a whole epoch, the same in each process."""
        return len(self._ends(0)) - 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches of the next epoch; after `load_state_dict` those left of the loaded one.

        Raises:
            ShardError: a shard is not what the index says, or its store does not give it.
            EvaluationError: a process that decodes was killed while a batch was waited for.
            RuntimeError: it was killed while the loop did something else; torch says so there.
        """
        if self._begins_next_epoch or self._clips >= len(self.samples):
            self.epoch, self._clips = self.epoch + 1, 0
        self._begins_next_epoch = True
        self._newest = mine = object()
        return self._read(mine, self.epoch, self._clips)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, after the batch that was given out last, in each process the same.

        The dictionary has only numbers and texts. Any number of processes, of any batch size, can
        go on from it: each clip that is left of the epoch is then given out once.
        """
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "clips": self._clips,
            "order": self._order,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state: the next `iter` begins after the batch that was given out last.

        Raises:
            ValueError: it is not a state of a loader with these samples, seed and `training`.
        """
        if not isinstance(state_dict, Mapping):
            raise ValueError(f"a state is a dictionary, not {type(state_dict).__name__}")
        try:
            state = schema.parse({each: state_dict.get(each) for each in _FIELDS}, _State)
        except ValueError as error:
            raise ValueError(f"it is not a state of a ClipLoader: {error}") from error
        if state.version != STATE_VERSION or state.clips > len(self.samples):
            raise ValueError(
                f"a state of version {state.version} after {state.clips} clips is not one of this "
                f"loader, of version {STATE_VERSION} and {len(self.samples)} clips"
            )
        if state.order != self._order:
            raise ValueError("the state is of a loader of other samples, seed or training")
        self.epoch, self._clips = state.epoch, state.clips
        self._begins_next_epoch = False

    def _ends(self, done: int) -> list[int]:
        """Where the batches of all processes end, the first number where the first one begins."""
        num = len(self.samples)
        ends = [*range(done, num, self._options.batch_size * self._options.num_processes), num]
        if len(ends) > 2 and ends[-1] - ends[-2] < self._options.num_processes:
            del ends[-2]  # else a process had no clip
        return ends

    def _read(self, mine: object, epoch: int, done: int) -> Iterator[dict[str, Tensor]]:
        ends = self._ends(done)
        num = len(self.samples)
        if self._options.training:
            order = epoch_order(num, seed=self._options.seed, epoch=epoch)
        else:
            order = list(range(num))
        rank, every = self._options.rank, self._options.num_processes
        parts = [order[start + rank : end : every] for start, end in pairwise(ends)]
        batches = read_batches(
            self.dataset,
            [[(epoch, number) for number in part] for part in parts],
            num_workers=self._options.num_workers,
        )
        with reading(batches) as readable:
            for part, end, batch in zip(parts, ends[1:], readable, strict=True):
                tensors = self._tensors(part, batch)
                if self._newest is mine:
                    self._clips = end
                yield tensors

    def _tensors(self, numbers: Sequence[int], batch: Batch) -> dict[str, Tensor]:
        for item in batch.failed:
            if item.key not in self.failed:
                logger.warning("left out: %s", item.failure)
            self.failed[item.key] = item.failure
        left_out = {item.key for item in batch.failed}
        if left_out:
            numbers = [n for n in numbers if self.samples[n].key not in left_out]
        options = self._options
        crops = batch.clips or Crops.empty(
            0, dict.fromkeys(options.streams, options.num_frames), options.crop_px
        )
        inputs = network_inputs(crops, self._device)
        tensors = dict(zip(crops.streams, inputs, strict=True))
        if self._has_labels:
            tensors["label_id"] = batch.label_ids.to(self._device)
        return tensors | {"number": torch.tensor(numbers, dtype=torch.int64, device=self._device)}


def _lacks(sample: Sample, streams: Sequence[str]) -> bool:
    """Whether a sample was read without one of the streams."""
    places = {"rgb": sample.rgb_at, "flow": sample.flow_at}
    return any(places[stream] is None for stream in streams)


def _place() -> tuple[int, int]:
    """Rank and number of processes, as torch.distributed or torchrun say."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


# Not a closure: where workers are spawned, the dataset is pickled.
def _middle(framing: views.Framing, _epoch: int, sample: Sample) -> views.View:
    return views.middle_view(sample.num_frames, framing)
