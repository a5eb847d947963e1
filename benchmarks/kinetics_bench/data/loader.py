"""Samples into batches: exact epochs, the same views for any number of workers or processes."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kinetics_bench.data import views
from kinetics_bench.data.views import View
from kinetics_bench.protocols import Extents
from kinetics_bench.recipes import Recipe
from kinetics_tools.core.console import progress
from kinetics_tools.core.errors import MediaError, ShardError
from kinetics_tools.shards.reader import Sample

CACHE_BYTES: Final = 4 * 2**30  # decoded training clips stay in memory where all fit in this
logger = logging.getLogger(__name__)

Frames = npt.NDArray[Any]
Streams = Mapping[str, Frames]


class Readable(Protocol):
    """What has frames and flow by number: a Sample, or a video that is not in a shard."""

    def rgb(self, indices: Sequence[int] | None = None) -> npt.NDArray[np.uint8]:
        """uint8 (T, H, W, 3)."""

    def flow(self, indices: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """float32 (T, H, W, 2), pixels per frame."""


@dataclass(frozen=True, slots=True)
class Item:
    """One view of a clip, or why its clip could not be decoded.

    Attributes:
        key: of the clip.
        label_id: of the clip.
        clips: of each stream of the view, float32 (C, T, H, W); None where one of them failed.
        failure: why.
        stop: an error that ends the run. It travels as a value: raised in a worker process, it
            would arrive wrapped in that process's traceback.
    """

    key: str
    label_id: int
    clips: tuple[Tensor, ...] | None
    failure: str = ""
    stop: ShardError | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Views of several clips; those that could not be decoded stand in `failed`, not in `clips`."""

    clips: tuple[Tensor, ...] | None  # of each stream, float32 (B, C, T, H, W); None: all failed
    label_ids: Tensor  # int64 (B,)
    failed: tuple[Item, ...]
    stop: ShardError | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """How clips become network input. `bound`: the flow, in pixels, that becomes 1."""

    recipe: Recipe
    bound: float

    @property
    def streams(self) -> tuple[str, ...]:
        """What the network is called with, in order."""
        return self.recipe.streams

    def decode(self, sample: Readable, stream: str, indices: Sequence[int] | None = None) -> Frames:
        """The sample's frames or fields, all or those asked for, resized as the recipe says.

        uint8 (T, H, W, 3) or float16 (T, H, W, 2): half precision keeps flow to 0.01 pixels, a
        fifteenth of the step in which shards hold it.
        """
        if stream == "rgb":
            return views.resize_rgb(sample.rgb(indices), self.recipe.short_side)
        flow = views.resize_flow(sample.flow(indices), self.recipe.short_side)
        return flow.astype(np.float16)

    def clips(
        self, sample: Readable, view: View, kept: Streams | None = None
    ) -> tuple[Tensor, ...]:
        """What the network is called with for one view, each float32 (C, T, h, w) in [-1, 1].

        Args:
            sample: what the view is of.
            view: which frames and fields of it, which part of them.
            kept: all of the sample's frames and fields, where `decode` gave them before.
        """
        return tuple(self._clip(sample, stream, view, kept) for stream in self.streams)

    def _clip(self, sample: Readable, stream: str, view: View, kept: Streams | None) -> Tensor:
        indices = view.indices[stream]
        if kept is not None:
            frames = kept[stream][indices]
        else:
            # A looped view asks for frames more than once; they are decoded once, in order.
            numbers, places = np.unique(indices, return_inverse=True)
            frames = self.decode(sample, stream, numbers.tolist())[places]
        if stream == "rgb":
            return views.rgb_clip(frames, view, self.recipe.crop_px)
        return views.flow_clip(frames, view, self.recipe.crop_px, bound=self.bound)


class Clips(Dataset[Item]):
    """Views of samples, asked for by (epoch, number of the sample)."""

    def __init__(
        self, samples: Sequence[Sample], reader: Reader, view_of: Callable[[int, Sample], View]
    ) -> None:
        self.samples = samples
        self.reader = reader
        self.view_of = view_of
        self.kept: dict[str, Streams | ShardError] = {}

    @classmethod
    def for_training(cls, samples: Sequence[Sample], reader: Reader, *, seed: int) -> "Clips":
        """Random views, which follow from (seed, epoch, key)."""

        def view_of(epoch: int, sample: Sample) -> View:
            random = views.randomness(seed, epoch, sample.key)
            return views.train_view(sample.num_frames, reader.recipe, random)

        return cls(samples, reader, view_of)

    @classmethod
    def for_evaluation(cls, samples: Sequence[Sample], reader: Reader, extents: Extents) -> "Clips":
        """The view of each sample that a protocol's `extents` ask for."""

        def view_of(_: int, sample: Sample) -> View:
            return views.eval_view(sample.num_frames, extents)

        return cls(samples, reader, view_of)

    def keep(self, limit_bytes: int) -> bool:
        """Decode every clip now and keep it, if all fit in `limit_bytes`; say whether they do."""
        if not self.samples:
            return False
        first = self._decode(self.samples[0])
        if isinstance(first, ShardError):
            return False
        num_frames = sum(sample.num_frames for sample in self.samples)
        frame_bytes = sum(frames.nbytes / len(frames) for frames in first.values())
        if frame_bytes * num_frames > limit_bytes:
            return False
        for sample in progress(self.samples, total=len(self.samples), what="reading clips"):
            self.kept[sample.key] = self._decode(sample)
        return True

    def _decode(self, sample: Sample) -> Streams | ShardError:
        try:
            return {stream: self.reader.decode(sample, stream) for stream in self.reader.streams}
        except ShardError as error:
            return error

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, request: tuple[int, int]) -> Item:
        epoch, number = request
        sample = self.samples[number]
        assert sample.label_id is not None  # splits.select saw to it
        view = self.view_of(epoch, sample)
        try:
            kept = self.kept.get(sample.key)
            if isinstance(kept, ShardError):
                raise kept
            clips = self.reader.clips(sample, view, kept)
        except ShardError as error:
            if not isinstance(error.__cause__, MediaError):  # the shards are broken, not one clip
                return Item(sample.key, sample.label_id, None, stop=ShardError(str(error)))
            return Item(sample.key, sample.label_id, None, str(error))
        return Item(sample.key, sample.label_id, clips)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: clips of its batch over all processes, and this process's passes."""

    num_clips: int
    passes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which clips each optimizer step reads: every clip once an epoch, in a new order each time.

    A batch is cut into passes, which the processes share out; so the result of a step does not
    depend on how many processes there are, but for the statistics of batch norm where a batch has
    fewer passes than there are processes and is cut smaller. Batch norm compares the clips of a
    pass: passes are cut evenly, of two clips at least where they may have two, and a last batch of
    one clip joins the one before.
    """

    num_clips: int
    recipe: Recipe
    seed: int
    rank: int = 0
    num_processes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last batch may be smaller, or one clip larger."""
        size = self.recipe.batch_size
        joined = size > 1 and self.num_clips > size and self.num_clips % size == 1
        return -(-self.num_clips // size) - int(joined)

    def steps(self, epoch: int) -> Iterator[Step]:
        """The steps of an epoch, in order."""
        order = views.randomness(self.seed, epoch, "order of the clips").permutation(self.num_clips)
        cuts = [self.recipe.batch_size * number for number in range(self.steps_per_epoch)]
        for start, end in pairwise([*cuts, self.num_clips]):
            batch = order[start:end].tolist()
            least = -(-len(batch) // self.recipe.pass_size)
            num = max(least, min(self.num_processes, len(batch) // 2))
            ends = [len(batch) * number // num for number in range(num + 1)]
            passes = [tuple(batch[first:last]) for first, last in pairwise(ends)]
            yield Step(len(batch), tuple(passes[self.rank :: self.num_processes]))


class _Requests(Sampler[list[tuple[int, int]]]):
    """The requests of all passes of the epochs still to do, so that workers never pause between."""

    def __init__(self, plan: BatchPlan, epochs: range) -> None:
        self.plan = plan
        self.epochs = epochs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in self.epochs:
            for step in self.plan.steps(epoch):
                for numbers in step.passes:
                    yield [(epoch, number) for number in numbers]


def train_batches(
    clips: Clips, plan: BatchPlan, epochs: range, *, num_workers: int
) -> Iterator[Batch]:
    """The batches of this process's passes, epoch after epoch, in the plan's order."""
    loader: DataLoader[Item] = DataLoader(
        clips,
        batch_sampler=_Requests(plan, epochs),
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        # Without one, the loader would draw from the generator that decides about dropout.
        generator=torch.Generator(),
    )
    for batch in loader:
        if batch.stop is not None:
            raise batch.stop
        yield batch


def eval_items(clips: Clips, numbers: Sequence[int], *, num_workers: int) -> Iterator[Item]:
    """One item a clip, in order: clips differ in length, so each is a batch of its own."""
    requests = [(0, number) for number in numbers]
    loader: DataLoader[Item] = DataLoader(
        clips,
        sampler=requests,
        batch_size=None,
        num_workers=num_workers,
    )
    for item in loader:
        if item.stop is not None:
            raise item.stop
        yield item


def _collate(items: Sequence[Item]) -> Batch:
    good = [(item.label_id, item.clips) for item in items if item.clips is not None]
    streams = zip(*(clips for _, clips in good), strict=True)
    return Batch(
        tuple(torch.stack(each) for each in streams) if good else None,
        torch.tensor([label_id for label_id, _ in good], dtype=torch.int64),
        tuple(item for item in items if item.clips is None),
        next((item.stop for item in items if item.stop is not None), None),
    )
