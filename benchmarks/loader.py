"""Samples into batches: exact epochs, the same views for any number of workers or processes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks import views
from benchmarks.protocols import EvalProtocol
from benchmarks.recipes import Recipe
from benchmarks.views import View
from kinetics_tools.cli import progress
from kinetics_tools.errors import MediaError, ShardError
from kinetics_tools.shards import Sample

CACHE_BYTES: Final = 4 * 2**30  # decoded training clips stay in memory where all fit in this
logger = logging.getLogger(__name__)

Frames = npt.NDArray[Any]


class Readable(Protocol):
    """What has frames and flow by number: a Sample, or a video that is not in a shard."""

    def rgb(self, indices: Sequence[int] | None = None) -> npt.NDArray[np.uint8]:
        """uint8 (T, H, W, 3)."""

    def flow(self, indices: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """float32 (T, H, W, 2), pixels per frame."""


@dataclass(frozen=True, slots=True)
class Item:
    """One view of a clip, float32 (C, T, H, W), or why its clip could not be decoded.

    `stop` is an error that ends the run. It travels as a value: raised in a worker process, it
    would arrive wrapped in that process's traceback.
    """

    key: str
    label_id: int
    clip: Tensor | None
    failure: str = ""
    stop: ShardError | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Views of several clips; those that could not be decoded stand in `failed`, not in `clips`."""

    clips: Tensor | None  # float32 (B, C, T, H, W); None when all failed
    label_ids: Tensor  # int64 (B,)
    failed: tuple[Item, ...]
    stop: ShardError | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """How a stream's clips become network input. `bound`: the flow, in pixels, that becomes 1."""

    stream: str
    recipe: Recipe
    bound: float

    def decode(self, sample: Readable, indices: Sequence[int] | None = None) -> Frames:
        """The sample's frames or fields, all or those asked for, resized as the recipe says.

        uint8 (T, H, W, 3) or float16 (T, H, W, 2): half precision keeps flow to 0.01 pixels, a
        fifteenth of the step in which shards hold it.
        """
        if self.stream == "rgb":
            return views.resize_rgb(sample.rgb(indices), self.recipe.short_side)
        flow = views.resize_flow(sample.flow(indices), self.recipe.short_side)
        return flow.astype(np.float16)

    def clip(self, frames: Frames, view: View) -> Tensor:
        """`frames`, which are the view's, as float32 (C, T, h, w) in [-1, 1]."""
        if self.stream == "rgb":
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
        self.kept: dict[str, Frames | ShardError] = {}

    @classmethod
    def for_training(cls, samples: Sequence[Sample], reader: Reader, *, seed: int) -> "Clips":
        """Random views, which follow from (seed, epoch, key)."""

        def view_of(epoch: int, sample: Sample) -> View:
            random = views.randomness(seed, epoch, sample.key)
            return views.train_view(sample.num_frames, reader.recipe, random)

        return cls(samples, reader, view_of)

    @classmethod
    def for_evaluation(
        cls, samples: Sequence[Sample], reader: Reader, protocol: EvalProtocol
    ) -> "Clips":
        """The protocol's view of each sample."""

        def view_of(_: int, sample: Sample) -> View:
            return views.eval_view(sample.num_frames, reader.stream, reader.recipe, protocol)

        return cls(samples, reader, view_of)

    def keep(self, limit_bytes: int) -> bool:
        """Decode every clip now and keep it, if all fit in `limit_bytes`; say whether they do."""
        if not self.samples:
            return False
        first = self._decode(self.samples[0])
        if isinstance(first, ShardError):
            return False
        num_frames = sum(sample.num_frames for sample in self.samples)
        if first.nbytes / len(first) * num_frames > limit_bytes:
            return False
        for sample in progress(self.samples, total=len(self.samples), what="reading clips"):
            self.kept[sample.key] = self._decode(sample)
        return True

    def _decode(self, sample: Sample) -> Frames | ShardError:
        try:
            return self.reader.decode(sample)
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
            clip = self.reader.clip(self._frames(sample, view), view)
        except ShardError as error:
            if not isinstance(error.__cause__, MediaError):  # the shards are broken, not one clip
                return Item(sample.key, sample.label_id, None, stop=ShardError(str(error)))
            return Item(sample.key, sample.label_id, None, str(error))
        return Item(sample.key, sample.label_id, clip)

    def _frames(self, sample: Sample, view: View) -> Frames:
        kept = self.kept.get(sample.key)
        if isinstance(kept, ShardError):
            raise kept
        if kept is not None:
            return kept[view.indices]
        # A looped view asks for frames more than once; they are decoded once, in order.
        numbers, places = np.unique(view.indices, return_inverse=True)
        return self.reader.decode(sample, numbers.tolist())[places]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: clips of its batch over all processes, and this process's passes."""

    num_clips: int
    passes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which clips each optimizer step reads: every clip once an epoch, in a new order each time.

    A batch is cut into passes, which the processes share out; so the result of a step does not
    depend on how many processes there are, but for the statistics of batch norm where a batch has
    fewer passes than there are processes and is cut smaller.
    """

    num_clips: int
    recipe: Recipe
    seed: int
    rank: int = 0
    num_processes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last batch may be smaller."""
        return -(-self.num_clips // self.recipe.batch_size)

    def steps(self, epoch: int) -> Iterator[Step]:
        """The steps of an epoch, in order."""
        order = views.randomness(self.seed, epoch, "order of the clips").permutation(self.num_clips)
        for start in range(0, self.num_clips, self.recipe.batch_size):
            batch = order[start : start + self.recipe.batch_size].tolist()
            size = min(self.recipe.pass_size, -(-len(batch) // self.num_processes))
            passes = [tuple(batch[at : at + size]) for at in range(0, len(batch), size)]
            yield Step(len(batch), tuple(passes[self.rank :: self.num_processes]))


class _Requests(Sampler[list[tuple[int, int]]]):
    """The requests of all passes of the epochs still to do, so that workers never pause between."""

    def __init__(self, plan: Plan, epochs: range) -> None:
        self.plan = plan
        self.epochs = epochs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in self.epochs:
            for step in self.plan.steps(epoch):
                for numbers in step.passes:
                    yield [(epoch, number) for number in numbers]


def train_batches(clips: Clips, plan: Plan, epochs: range, *, num_workers: int) -> Iterator[Batch]:
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
    good = [item for item in items if item.clip is not None]
    return Batch(
        torch.stack([item.clip for item in good if item.clip is not None]) if good else None,
        torch.tensor([item.label_id for item in good], dtype=torch.int64),
        tuple(item for item in items if item.clip is None),
        next((item.stop for item in items if item.stop is not None), None),
    )
