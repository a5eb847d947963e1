"""What a network is trained on and checked with, as micro-batches on its device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kinetics_bench.archs.network import Head, Network
from kinetics_bench.data.inputs import Crops, network_inputs
from kinetics_bench.data.loader import (
    CACHE_BYTES,
    Batch,
    BatchPlan,
    ClipDataset,
    Reader,
    read_batches,
    train_batches,
)
from kinetics_bench.data.views import View, middle_view
from kinetics_bench.device import Machine
from kinetics_bench.recipes import Recipe
from kinetics_bench.training import estimate
from kinetics_bench.training.job import TrainingJob, plan_of
from kinetics_tools.core.system import num_processors
from kinetics_tools.shards.reader import Sample


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The clips of one forward pass.

    Attributes:
        inputs: of `Examples.model`, of B clips, on the device.
        label_ids: int64 (B,), on the device; B is 0 if no clip could be decoded.
        failed: key -> why a clip could not be decoded. They are not among the B.
    """

    inputs: Sequence[Tensor]
    label_ids: Tensor
    failed: Mapping[str, str]


RunPass = Callable[[Sequence[Tensor], Tensor], object]


class Examples(ABC):
    """The training and the held-out clips of a job, as this process reads them.

    Attributes:
        model: what takes their inputs, and is trained.
        plan: which clips each step reads.
        num_held_out: how many clips are held out, over all processes.
    """

    model: Network | Head

    def __init__(self, job: TrainingJob, machine: Machine) -> None:
        self.job = job
        self.machine = machine
        self.plan: BatchPlan = plan_of(job, machine)
        self.held_out = () if job.held_out is None else job.held_out.samples
        self.num_held_out = len(self.held_out)

    @abstractmethod
    def prepare(self) -> None:
        """Read what is read once, before the first step."""

    @abstractmethod
    def training(self, epochs: range, done: int) -> Generator[MicroBatch]:
        """The micro-batches of this process, epoch after epoch, in the plan's order.

        Args:
            epochs: the epochs to read.
            done: steps of the first of them that are left out.
        """

    @abstractmethod
    def checked(self) -> Generator[MicroBatch]:
        """The held-out clips of this process: of each its middle, centre crop, no flip."""

    @abstractmethod
    def nothing(self) -> MicroBatch:
        """A micro-batch of no clip, for a process that takes part in the others' forward pass."""

    @abstractmethod
    def seconds_before(self) -> float:
        """Seconds that `prepare` takes, measured, where it computes."""

    @abstractmethod
    def seconds_per_clip(self, run_pass: RunPass) -> float:
        """Seconds that one process needs for one training clip, measured.

        Args:
            run_pass: forward and backward pass: (inputs, label ids).
        """

    @property
    def num_workers(self) -> int:
        """Processes that read clips from the shards."""
        given = self.job.num_workers
        return num_processors() if given is None else given

    def _numbers_checked(self) -> list[list[int]]:
        """Places of the held-out clips of this process, in micro-batches."""
        size = self.job.recipe.micro_batch_size
        numbers = range(self.num_held_out)
        batches = [list(numbers[at : at + size]) for at in range(0, len(numbers), size)]
        return batches[self.machine.rank :: self.machine.num_processes]


class ClipExamples(Examples):
    """Clips as inputs of the whole network, decoded and cropped again for each step."""

    def __init__(self, job: TrainingJob, machine: Machine, net: Network) -> None:
        super().__init__(job, machine)
        self.model = net
        reader = Reader(job.recipe, job.bound)
        self._clips = ClipDataset.for_training(job.train.samples, reader, seed=job.seed)
        self._held_out = ClipDataset(self.held_out, reader, partial(middle, job.recipe))

    def prepare(self) -> None:
        """Decode the training clips, if all fit in memory; held-out ones, if they fit beside."""
        limit = CACHE_BYTES // self.machine.num_processes
        if self._clips.cache_in_memory(limit):
            self._held_out.cache_in_memory(limit - self._clips.cached_bytes)

    def training(self, epochs: range, done: int) -> Generator[MicroBatch]:
        """Random views; errors as in `train_batches`."""
        workers = self._workers_of(self._clips)
        batches = train_batches(self._clips, self.plan, epochs, done, num_workers=workers)
        return self._on_device(batches)

    def checked(self) -> Generator[MicroBatch]:
        """Views of the middle; errors as in `read_batches`."""
        numbers = [[(0, number) for number in each] for each in self._numbers_checked()]
        workers = 0 if self._held_out.cache else self.num_workers
        return self._on_device(read_batches(self._held_out, numbers, num_workers=workers))

    def nothing(self) -> MicroBatch:
        """Inputs of 0 clips."""
        return MicroBatch(*self._empty(0), {})

    def seconds_before(self) -> float:
        """Nothing is computed."""
        return 0.0

    def seconds_per_clip(self, run_pass: RunPass) -> float:
        """Reading and learning."""

        def empty_pass(num: int) -> None:
            run_pass(*self._empty(num))

        recipe = self.job.recipe
        learning_s = estimate.learning_seconds(self.model, empty_pass, recipe, self.machine)
        reading_s = estimate.reading_seconds(self._clips)
        workers = self._workers_of(self._clips)
        return max(learning_s, reading_s / workers) if workers else learning_s + reading_s

    def _empty(self, num: int) -> tuple[list[Tensor], Tensor]:
        """Inputs and label ids of black clips."""
        recipe, device = self.job.recipe, self.machine.device
        num_frames = {stream: recipe.sampling[stream].num for stream in recipe.streams}
        crops = Crops.empty(num, num_frames, recipe.crop_px)
        return network_inputs(crops, device), torch.zeros(num, dtype=torch.int64, device=device)

    def _workers_of(self, clips: ClipDataset) -> int:
        """None by default where clips were decoded before."""
        return 0 if clips.cache and self.job.num_workers is None else self.num_workers

    def _on_device(self, batches: Generator[Batch]) -> Generator[MicroBatch]:
        device = self.machine.device
        with closing(batches):
            for batch in batches:
                failed = {item.key: item.failure for item in batch.failed}
                if batch.clips is None:
                    yield replace(self.nothing(), failed=failed)
                    continue
                inputs = network_inputs(batch.clips, device)
                yield MicroBatch(inputs, batch.label_ids.to(device), failed)


# Not a closure: where workers are spawned, the dataset is pickled.
def middle(recipe: Recipe, _epoch: int, sample: Sample) -> View:
    """The middle of a clip, for a ClipDataset."""
    return middle_view(sample.num_frames, recipe)
