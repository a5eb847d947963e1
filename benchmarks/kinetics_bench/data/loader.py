"""Samples into batches: exact epochs, the same views for any number of workers or processes."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.util
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kinetics_bench.data import views
from kinetics_bench.data.handover import Packed, pack, unpack
from kinetics_bench.data.inputs import Crops
from kinetics_bench.data.views import View
from kinetics_bench.protocols import Extents
from kinetics_bench.recipes import Recipe
from kinetics_tools.core import signals
from kinetics_tools.core.console import progress
from kinetics_tools.core.errors import EvaluationError, MediaError, ShardError
from kinetics_tools.media.decode import Window
from kinetics_tools.shards.reader import Sample

CACHE_BYTES: Final = 4 * 2**30  # decoded training clips are cached where all of them fit in this
NO_LABEL: Final = -1
logger = logging.getLogger(__name__)

T = TypeVar("T")
Pictures = npt.NDArray[np.uint8]


class Readable(Protocol):
    """Frames and flow fields by number: a Sample, or a video that is not in a shard."""

    @property
    def bound(self) -> float:
        """Pixels per frame that the highest code of its flow stands for."""

    def rgb(
        self, indices: Sequence[int] | None = None, window: Window | None = None
    ) -> npt.NDArray[np.uint8]:
        """Frames, all or those at `indices`, or a part of each: uint8 (T, H, W, 3)."""

    def codes(
        self, indices: Sequence[int] | None = None, window: Window | None = None
    ) -> npt.NDArray[np.uint8]:
        """Codes of flow fields, in the same way: uint8 (T, H, W, 2)."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A stream of a clip, or of a part of it, resized to the network's short side.

    Attributes:
        pictures: uint8 (T, H, W, C): frames, or codes of flow.
        scale: by how much width and height were resized.
    """

    pictures: Pictures
    scale: tuple[float, float]


Streams = Mapping[str, Decoded]


@dataclass(frozen=True, slots=True)
class Item:
    """One view of a clip, or why the clip could not be decoded.

    Attributes:
        key: key of the clip.
        label_id: label of the clip, its rank in the dataset's label list; -1: it has none.
        clips: of this one clip; None where it could not be decoded.
        failure: why it could not be decoded; else empty.
        stop: an error of a shard or its storage that ends the run. It is passed on as a value: an
            exception from a worker process arrives with that process's traceback as its message.
    """

    key: str
    label_id: int
    clips: Crops | None
    failure: str = ""
    stop: ShardError | OSError | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Views of several clips: the micro-batch of one forward pass.

    Attributes:
        clips: of the B clips; None where no clip could be decoded.
        label_ids: int64 (B,).
        failed: the clips that could not be decoded. They are not among the B.
        stop: as in `Item`.
    """

    clips: Crops | None
    label_ids: Tensor
    failed: tuple[Item, ...]
    stop: ShardError | OSError | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """What of a clip's frames becomes the input of a network.

    Attributes:
        framing: gives streams, sizes and crop; a Recipe is one.
        bound: flow of so many pixels per frame becomes 1 in the input.
    """

    framing: views.Framing
    bound: float

    @property
    def streams(self) -> tuple[str, ...]:
        """The network's inputs, in order: `rgb`, `flow` or both."""
        return self.framing.streams

    def decode(self, sample: Readable, stream: str) -> Decoded:
        """All frames or fields of a sample.

        Raises:
            ShardError: the shard is not what the index says, or the sample cannot be decoded.
        """
        return self._resized(stream, sample.rgb() if stream == "rgb" else sample.codes())

    def _resized(self, stream: str, pictures: Pictures) -> Decoded:
        height, width = pictures.shape[1:3]
        resize = views.resize_rgb if stream == "rgb" else views.resize_codes
        resized = resize(pictures, self.framing.short_side)
        return Decoded(resized, (resized.shape[2] / width, resized.shape[1] / height))

    def clips(self, sample: Readable, view: View, decoded: Streams | None = None) -> Crops:
        """The crops of one view of one clip.

        Args:
            sample: the clip.
            view: frames, fields, crop and flip.
            decoded: what `decode` returned, by stream; None: what the view needs is decoded now.

        Raises:
            ShardError: as in `decode`.
        """
        crops = {}
        scale = (1.0, 1.0)
        for stream in self.streams:
            if decoded is None:
                part = self._part(sample, stream, view)
            else:
                rows, columns = self._crop(view, *decoded[stream].pictures.shape[1:3])
                pictures = decoded[stream].pictures[view.indices[stream], rows, columns]
                part = replace(decoded[stream], pictures=pictures)
            # As they lie in memory: colours beside each other, x and y of flow apart.
            if stream == "flow":
                scale = part.scale
            order = (0, 1, 2, 3) if stream == "rgb" else (0, 3, 1, 2)
            crops[stream] = torch.from_numpy(np.ascontiguousarray(part.pictures.transpose(order)))
        return Crops(
            {stream: crop[None] for stream, crop in crops.items()},
            torch.tensor([view.flip]),
            torch.tensor([scale]).mul_(sample.bound / self.bound),
        )

    def crop(self, whole: Crops, of: View, view: View) -> Crops:
        """The crops of one view, out of the whole frames of a view that has all of its frames."""
        streams = {}
        for stream, pictures in whole.streams.items():
            numbers = np.searchsorted(of.indices[stream], view.indices[stream])
            found = pictures[:, torch.from_numpy(numbers)]
            if stream == "rgb":
                rows, columns = self._crop(view, *found.shape[2:4])
                streams[stream] = found[:, :, rows, columns]
            else:
                rows, columns = self._crop(view, *found.shape[3:5])
                streams[stream] = found[..., rows, columns]
        return replace(whole, streams=streams)

    def _part(self, sample: Readable, stream: str, view: View) -> Decoded:
        """The crops of a view. Where nothing is resized, only they are copied."""
        read = sample.rgb if stream == "rgb" else sample.codes
        is_cropped = False

        def window(height: int, width: int) -> tuple[slice, slice]:
            nonlocal is_cropped
            size = views.resized_size(height, width, self.framing.short_side)
            is_cropped = size == (height, width)
            return self._crop(view, height, width) if is_cropped else (slice(None), slice(None))

        pictures = read(view.indices[stream].tolist(), window)
        if is_cropped:
            return Decoded(pictures, (1.0, 1.0))
        whole = self._resized(stream, pictures)
        rows, columns = self._crop(view, *whole.pictures.shape[1:3])
        return replace(whole, pictures=whole.pictures[:, rows, columns])

    def _crop(self, view: View, height: int, width: int) -> tuple[slice, slice]:
        return views.crop_of(view, height, width, self.framing.crop_px)


class ClipDataset(Dataset[Item]):
    """A map-style torch dataset of views. An index is a pair: epoch, number of the sample."""

    def __init__(
        self, samples: Sequence[Sample], reader: Reader, view_of: Callable[[int, Sample], View]
    ) -> None:
        """A dataset of any views.

        Args:
            samples: the clips.
            reader: decodes and crops.
            view_of: (epoch, sample) -> the view of it.
        """
        self.samples = samples
        self.reader = reader
        self.view_of = view_of
        self.cache: dict[str, Streams | str] = {}  # by key; a text: why it cannot be decoded

    @classmethod
    def for_training(cls, samples: Sequence[Sample], reader: Reader, *, seed: int) -> ClipDataset:
        """Random views, which depend on seed, epoch and key alone."""
        return cls(samples, reader, partial(random_view, reader.framing, seed))

    @classmethod
    def for_evaluation(
        cls, samples: Sequence[Sample], reader: Reader, extents: Extents
    ) -> ClipDataset:
        """The centre view of each sample, with frames and fields as `extents` says."""
        return cls(samples, reader, partial(_eval_view, extents))

    def cache_in_memory(self, limit_bytes: int) -> bool:
        """Decode all clips now and keep them, if all fit in `limit_bytes`; return whether they do.

        The size is estimated from the first clip. If that cannot be decoded, nothing is cached.

        Raises:
            ShardError: a shard is not what the index says, or its store does not give it.
        """
        if not self.samples:
            return False
        first = self._decode(self.samples[0])
        if isinstance(first, str):
            return False
        num_frames = sum(sample.num_frames for sample in self.samples)
        frame_bytes = sum(each.pictures[0].nbytes for each in first.values())
        if frame_bytes * num_frames > limit_bytes:
            return False
        for sample in progress(self.samples, total=len(self.samples), what="reading clips"):
            self.cache[sample.key] = self._decode(sample)
        return True

    @property
    def cached_bytes(self) -> int:
        """The size of what is kept in memory."""
        kept = (each for each in self.cache.values() if not isinstance(each, str))
        return sum(stream.pictures.nbytes for streams in kept for stream in streams.values())

    def _decode(self, sample: Sample) -> Streams | str:
        try:
            return {stream: self.reader.decode(sample, stream) for stream in self.reader.streams}
        except ShardError as error:
            if not isinstance(error.__cause__, MediaError):  # the shard is broken, not one clip
                raise
            return str(error)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: tuple[int, int]) -> Item:
        epoch, number = index
        sample = self.samples[number]
        label_id = NO_LABEL if sample.label_id is None else sample.label_id
        view = self.view_of(epoch, sample)
        try:
            decoded = self.cache.get(sample.key)
            if isinstance(decoded, str):
                return Item(sample.key, label_id, None, decoded)
            clips = self.reader.clips(sample, view, decoded)
        except ShardError as error:
            if not isinstance(error.__cause__, MediaError):  # the shard is broken, not one clip
                return Item(sample.key, label_id, None, stop=type(error)(str(error)))
            return Item(sample.key, label_id, None, str(error))
        except OSError as error:  # of the storage; a worker's exception would lose its number
            shard = error.filename or f"a shard of {sample.key}"
            stop = OSError(error.errno, error.strerror or str(error), str(shard))
            return Item(sample.key, label_id, None, stop=stop)
        return Item(sample.key, label_id, clips)


# Not closures: where workers are spawned, the dataset is pickled.
def random_view(framing: views.Framing, seed: int, epoch: int, sample: Sample) -> View:
    """The training view of a sample, which depends on seed, epoch and key alone."""
    return views.train_view(sample.num_frames, framing, views.seeded_rng(seed, epoch, sample.key))


def _eval_view(extents: Extents, _epoch: int, sample: Sample) -> View:
    return views.eval_view(sample.num_frames, extents)


def epoch_order(num_clips: int, *, seed: int, epoch: int) -> list[int]:
    """The numbers of all clips in the order of an epoch."""
    rng = views.seeded_rng(seed, epoch, "order of the clips")
    order: list[int] = rng.permutation(num_clips).tolist()
    return order


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step.

    Attributes:
        num_clips: clips of the batch, over all processes.
        micro_batches: of this process: for each forward pass the numbers of its samples.
        num_rounds: how many the process with most of them has.
    """

    num_clips: int
    micro_batches: tuple[tuple[int, ...], ...]
    num_rounds: int


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which clips each optimizer step reads: every clip once per epoch, each epoch in a new order.

    A batch is cut into micro-batches, which the processes share. The result of a step then does not
    depend on the number of processes. Exception: where a batch has fewer micro-batches than there
    are processes, it is cut smaller, which changes batch norm's statistics.

    Batch norm needs several clips per micro-batch. So micro-batches are cut evenly, with at least
    two clips where `micro_batch_size` allows two. A last batch of one clip joins the one before.

    Attributes:
        num_clips: size of the dataset.
        recipe: gives the sizes of batch and micro-batch.
        seed: decides the order, together with the epoch.
        rank: this process.
        num_processes: all processes.
    """

    num_clips: int
    recipe: Recipe
    seed: int
    rank: int = 0
    num_processes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch. The last batch may be smaller, or one clip larger."""
        size = self.recipe.batch_size
        joined = size > 1 and self.num_clips > size and self.num_clips % size == 1
        return -(-self.num_clips // size) - int(joined)

    @property
    def smallest_micro_batch(self) -> int:
        """The smallest number of clips in a micro-batch, in every epoch."""
        return self._smallest_of(1)

    @property
    def smallest_round(self) -> int:
        """The smallest number of clips that all processes together have in a forward pass."""
        return self._smallest_of(self.num_processes)

    def _smallest_of(self, num: int) -> int:
        """The smallest number of clips in `num` micro-batches, counted from a step's first."""
        sizes = {end - start for start, end in pairwise(self._cuts)}
        cuts = [self._micro_cuts(size) for size in sizes]
        return min(b - a for each in cuts for a, b in pairwise([*each[:-1:num], each[-1]]))

    @property
    def _cuts(self) -> list[int]:
        """Where the batches of an epoch begin, and where the last one ends."""
        size = self.recipe.batch_size
        return [*(size * number for number in range(self.steps_per_epoch)), self.num_clips]

    def _micro_cuts(self, batch_size: int) -> list[int]:
        """Where the micro-batches of a batch begin, and where the last one ends."""
        fewest = -(-batch_size // self.recipe.micro_batch_size)
        num = max(fewest, min(self.num_processes, batch_size // 2))
        return [batch_size * number // num for number in range(num + 1)]

    def steps(self, epoch: int) -> Iterator[Step]:
        """The steps of an epoch, in order."""
        order = epoch_order(self.num_clips, seed=self.seed, epoch=epoch)
        for start, end in pairwise(self._cuts):
            batch = order[start:end]
            cuts = self._micro_cuts(len(batch))
            micro_batches = [tuple(batch[first:last]) for first, last in pairwise(cuts)]
            own = tuple(micro_batches[self.rank :: self.num_processes])
            yield Step(len(batch), own, -(-len(micro_batches) // self.num_processes))


class MicroBatchSampler(Sampler[list[tuple[int, int]]]):
    """Indices of all micro-batches of the remaining epochs: workers do not wait between epochs."""

    def __init__(self, plan: BatchPlan, epochs: range, done: int) -> None:
        self.plan = plan
        self.epochs = epochs
        self.done = done

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in self.epochs:
            first = self.done if epoch == self.epochs[0] else 0
            for step in islice(self.plan.steps(epoch), first, None):
                for numbers in step.micro_batches:
                    yield [(epoch, number) for number in numbers]


@contextmanager
def reading(views: Generator[T]) -> Iterator[Iterator[T]]:
    """A block that reads batches or items; at its end their processes have ended.

    Raises:
        EvaluationError: one of them was killed. torch tells of it in a signal handler, so wherever
            the block is just then, not only where it waits for clips.
    """
    try:
        with closing(views):
            yield views
    except RuntimeError as error:
        said = " ".join(str(error).split()).rstrip(".")
        if not said.startswith("DataLoader worker"):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the loader, and so its processes
        raise EvaluationError(
            f"a process that reads clips has ended ({said}): most likely the system killed it, "
            "short of memory; give fewer --workers (num_workers) and start again, a training with "
            "--resume"
        ) from error


def train_batches(
    dataset: ClipDataset, plan: BatchPlan, epochs: range, done: int = 0, *, num_workers: int
) -> Generator[Batch]:
    """The micro-batches of this process, epoch after epoch, in the plan's order.

    Args:
        dataset: the training views.
        plan: their order and batches.
        epochs: the epochs to read.
        done: steps of the first of them that are left out.
        num_workers: processes that decode; 0: this one.

    Raises:
        ShardError: a shard is not what the index says.
    """
    return read_batches(dataset, MicroBatchSampler(plan, epochs, done), num_workers=num_workers)


def read_batches(
    dataset: ClipDataset, numbers: Iterable[list[tuple[int, int]]], *, num_workers: int
) -> Generator[Batch]:
    """Batches of the views at `numbers`: of each its epochs and places in `dataset.samples`.

    Raises:
        ShardError: a shard is not what the index says.
    """
    batches = _read(
        dataset,
        num_workers,
        batch_sampler=numbers,
        collate_fn=_packed_batch,
        # By default the loader draws a seed from the global generator, on which dropout depends.
        generator=torch.Generator(),
    )
    with closing(batches):
        for batch in batches:
            if batch.stop is not None:
                raise batch.stop
            yield batch


def eval_items(
    dataset: ClipDataset, numbers: Sequence[int], *, num_workers: int
) -> Generator[Item]:
    """The views of the samples at `numbers`, in order, one at a time: their lengths differ.

    Args:
        dataset: the evaluation views.
        numbers: places in `dataset.samples`.
        num_workers: processes that decode; 0: this one.

    Raises:
        ShardError: a shard is not what the index says.
    """
    order = [(0, number) for number in numbers]
    items = _read(dataset, num_workers, sampler=order, batch_size=None, collate_fn=pack)
    with closing(items):
        for item in items:
            if item.stop is not None:
                raise item.stop
            yield item


def _read(dataset: ClipDataset, num_workers: int, **options: Any) -> Generator[Any]:
    """What torch's loader reads. Its processes end at once with the generator, whatever they do."""
    num_workers = _startable(num_workers)
    is_ending = multiprocessing.RawValue("b", 0)
    before = set(multiprocessing.active_children())
    with signals.held():  # until the workers ignore them
        loader: DataLoader[Any] = DataLoader(
            dataset,
            num_workers=num_workers,
            worker_init_fn=partial(_leave_signals, is_ending),
            **options,
        )
        values = iter(loader)
    workers = set(multiprocessing.active_children()) - before

    def end() -> None:
        # torch would wait five seconds for each that waits for a disk or a store.
        is_ending.value = 1
        for worker in workers:
            worker.terminate()

    # Also where the program ends and nobody has closed this generator: before multiprocessing
    # waits for its children, which else would not end.
    end_once = multiprocessing.util.Finalize(None, end, exitpriority=1)
    try:
        yield from map(unpack, values)
    finally:
        end_once()


def _leave_signals(is_ending: Any, _worker: int) -> None:
    """Leave it to the reader to stop: a batch system or a terminal signals all processes at once.

    A worker that ends first looks as if it had been killed.
    """
    signals.ignore_in_worker()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if is_ending.value else None)
    if is_ending.value:  # the signal may have come before this could hear it
        os._exit(0)


def _startable(num_workers: int) -> int:
    """That many workers; none, and the log says so, if their queues cannot be made."""
    if num_workers == 0:
        return 0
    queues: list[Any] = []
    try:
        for _ in range(num_workers + 2):
            queues.append(multiprocessing.Queue())
    except OSError as error:  # their locks are files in /dev/shm: it is full, or cannot be written
        logger.warning(
            "no processes can be started that read clips (%s; their locks are in /dev/shm): this "
            "one reads them, which is slower",
            error.strerror,
        )
        num_workers = 0
    for queue in queues:
        queue.close()
    return num_workers


def _packed_batch(items: Sequence[Item]) -> Batch | Packed:
    return pack(_collate(items))


def _collate(items: Sequence[Item]) -> Batch:
    good = [(item.label_id, item.clips) for item in items if item.clips is not None]
    return Batch(
        Crops.joined([clips for _, clips in good]) if good else None,
        torch.tensor([label_id for label_id, _ in good], dtype=torch.int64),
        tuple(item for item in items if item.clips is None),
        next((item.stop for item in items if item.stop is not None), None),
    )
