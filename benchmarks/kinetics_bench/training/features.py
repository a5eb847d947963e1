"""Features of a frozen network, computed once and kept: what its last layer is trained on.

Source: Carreira and Zisserman, arXiv 1705.07750 v3, Table 4, "Fixed".

The view of a clip is its middle: as many frames as the recipe's sampling says, centre crop, no
flip; a shorter clip is looped from its start. The network is in evaluation mode and sees one clip
at a time. So features do not depend on the seed, the batches or the number of processes. They are
the input of the last layer, before its dropout: of ConvNet+LSTM the states after each frame.

FOLDER/<digest>/part-000000.npz    the features of 64 clips. The digest is of everything that
                                   decides them: the weights before the last layer, the view, and
                                   the bytes of the clips

    features     float32 (n, F, T'): n clips, F features, T' time steps
    keys         their keys, (n,)
    failed       keys of clips that could not be decoded
    reasons      why, in the same order
"""

from __future__ import annotations

import logging
import time
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kinetics_bench.archs.network import Head, Network
from kinetics_bench.data.inputs import Crops, network_inputs
from kinetics_bench.data.loader import (
    ClipDataset,
    MicroBatchSampler,
    Reader,
    eval_items,
    reading,
)
from kinetics_bench.device import Machine
from kinetics_bench.training import estimate
from kinetics_bench.training.checkpoint import NUMERICS
from kinetics_bench.training.examples import Examples, MicroBatch, RunPass, middle
from kinetics_bench.training.job import TrainingJob, trainable
from kinetics_bench.weights.files import Weights
from kinetics_bench.weights.naming import COUNT
from kinetics_tools.core.console import progress
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import digest, publish, remove_leftovers
from kinetics_tools.shards.reader import Sample

PART: Final = 64  # clips in a file
MEASURED: Final = 4  # clips whose features are computed to tell how long all take
# zipfile raises RuntimeError about kinds of files that it cannot read.
UNREADABLE: Final = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile)
logger = logging.getLogger(__name__)
Found = npt.NDArray[np.float32] | str  # the features of a clip (F, T'), or why there are none


def frozen_sha256(state: Mapping[str, Tensor], net: Network) -> str:
    """SHA-256 of the weights that decide a network's features: all but those of the last layer.

    Args:
        state: of the network.
        net: says which layers are last.
    """
    lasts = tuple(f"{layer}." for layer in net.last_layers)
    frozen = {
        name: tensor.cpu()
        for name, tensor in state.items()
        if not name.endswith(COUNT) and not name.startswith(lasts)
    }
    return Weights(state=frozen, source="").sha256


@dataclass(frozen=True, slots=True)
class Part:
    """The features of some clips; see the module's docstring."""

    features: npt.NDArray[np.float32]
    keys: tuple[str, ...]
    failed: Mapping[str, str]

    @classmethod
    def of(cls, found: Mapping[str, Found]) -> Part:
        """The part of clips by key: of each its features (F, T'), or why there are none."""
        failed = {key: value for key, value in found.items() if isinstance(value, str)}
        rows = {key: value for key, value in found.items() if not isinstance(value, str)}
        stacked = np.stack([*rows.values()]) if rows else np.empty((0, 0, 0), np.float32)
        return cls(stacked, tuple(rows), failed)

    def write(self, path: Path) -> None:
        """Write it; a reader sees a whole file or none."""
        with publish(path) as scratch, scratch.open("wb") as file:
            np.savez(
                file,
                features=self.features,
                keys=np.array(self.keys, np.str_),
                failed=np.array([*self.failed], np.str_),
                reasons=np.array([*self.failed.values()], np.str_),
            )

    @classmethod
    def read(cls, path: Path, keys: Sequence[str]) -> Part | None:
        """The part of `keys` that `write` wrote; None if there is none, or it is damaged."""
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                failed = zip(stored["failed"].tolist(), stored["reasons"].tolist(), strict=True)
                part = cls(stored["features"], tuple(stored["keys"].tolist()), dict(failed))
        except UNREADABLE as error:
            logger.warning("%s is damaged, and computed again (%s)", path, error)
            return None
        values = part.features
        is_whole = values.ndim == 3 and len(values) == len(part.keys)
        if values.dtype != np.float32 or not is_whole or {*part.keys, *part.failed} != {*keys}:
            logger.warning("%s is not what it should be, and computed again", path)
            return None
        return part


class FeatureExamples(Examples):
    """Features as inputs of a network's head. They are computed by all processes together."""

    model: Head

    def __init__(self, job: TrainingJob, machine: Machine, net: Network) -> None:
        super().__init__(job, machine)
        self.model = Head(net)
        both = {sample.key: sample for sample in (*job.train.samples, *self.held_out)}
        # Training and held-out clips together, in one order: another seed may part them elsewhere.
        self._samples = [both[key] for key in sorted(both)]
        view = partial(middle, job.recipe)
        self._clips = ClipDataset(self._samples, Reader(job.recipe, job.bound), view)
        self._rows: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._features = torch.empty(0)

    @cached_property
    def folder(self) -> Path:
        """Where the features are kept."""
        job, machine, recipe = self.job, self.machine, self.job.recipe
        identity = {
            "arch": job.arch,
            "stream": job.stream,
            "weights": frozen_sha256(self.model.net.state_dict(), self.model.net),
            "sampling": {stream: asdict(each) for stream, each in recipe.sampling.items()},
            "frame": [recipe.short_side, recipe.crop_px],
            "flow bound": job.bound,
            "data recipe": job.data_hash,
            "clips": [[sample.key, *_digests(sample)] for sample in self._samples],
            "precision": machine.precision,
            "device": machine.device.type,
            "version of torch": torch.__version__,
            "numerics of the code": NUMERICS,
        }
        return (job.features or job.folder / "features") / digest(identity)[:16]

    def prepare(self) -> None:
        """Compute the features that are not kept, write them, and read all.

        Raises:
            EvaluationError: no clip could be decoded, or features are not finite.
            ShardError: a shard is not what the index says, or its store does not give it.
        """
        if self.machine.is_main:
            remove_leftovers(self.folder)
        numbers = range(self.machine.rank, self._num_parts, self.machine.num_processes)
        todo = [number for number in numbers if self._read(number) is None]
        self._compute(todo)
        self.machine.barrier()
        parts = [self._read(number) for number in range(self._num_parts)]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            raise EvaluationError(
                f"{self.folder} lacks features that another process wrote; give a --cache-dir that "
                "all processes share, and start again"
            )
        self._failed = {key: why for part in whole for key, why in part.failed.items()}
        if len(self._failed) == len(self._samples):
            why = next(iter(self._failed.values()))
            raise EvaluationError(f"{self.job.stream}: no clip could be decoded: {why}")
        features = np.concatenate([part.features for part in whole if part.keys])
        self._features = torch.from_numpy(features).to(self.machine.device)
        keys = [key for part in whole for key in part.keys]
        self._rows = {key: row for row, key in enumerate(keys)}

    def training(self, epochs: range, done: int) -> Generator[MicroBatch]:
        """The same features in each epoch, in the epoch's order."""
        for indices in MicroBatchSampler(self.plan, epochs, done):
            yield self._batch([self.job.train.samples[number] for _, number in indices])

    def checked(self) -> Generator[MicroBatch]:
        """Features of the held-out clips."""
        for numbers in self._numbers_checked():
            yield self._batch([self.held_out[number] for number in numbers])

    def nothing(self) -> MicroBatch:
        """Features of no clip."""
        return self._batch([])

    def seconds_before(self) -> float:
        """Of the clips whose features are not kept, as the first of them takes."""
        missing = [n for n in range(self._num_parts) if not self._path(n).exists()]
        if not missing:
            return 0.0
        clips = sum(len(self._numbers(number)) for number in missing)
        times = [time.monotonic()]
        for _ in self._computed(self._numbers(missing[0])[:MEASURED]):
            times.append(time.monotonic())
        if len(times) > 2:
            del times[0]  # of the first clip: the workers start
        seconds = (times[-1] - times[0]) / (len(times) - 1)
        return seconds * clips / self.machine.num_processes

    def seconds_per_clip(self, run_pass: RunPass) -> float:
        """Learning from features; there is nothing to read."""
        machine, recipe = self.machine, self.job.recipe
        frames = {stream: recipe.sampling[stream].num for stream in recipe.streams}
        features = self._of(Crops.empty(1, frames, recipe.crop_px))

        def empty_pass(num: int) -> None:
            labels = torch.zeros(num, dtype=torch.int64, device=machine.device)
            run_pass([features.expand(num, -1, -1).contiguous()], labels)

        return estimate.learning_seconds(self.model, empty_pass, recipe, machine)

    @property
    def _num_parts(self) -> int:
        return -(-len(self._samples) // PART)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.npz"

    def _numbers(self, part: int) -> range:
        """The places of a part's clips."""
        return range(part * PART, min((part + 1) * PART, len(self._samples)))

    def _read(self, number: int) -> Part | None:
        keys = [self._samples[at].key for at in self._numbers(number)]
        return Part.read(self._path(number), keys)

    def _compute(self, parts: Sequence[int]) -> None:
        """Compute and write parts, each as soon as it is complete."""
        numbers = [at for part in parts for at in self._numbers(part)]
        if not numbers:
            return
        found = self._computed(numbers)
        if self.machine.is_main:
            what = f"features of {self.job.stream}"
            found = progress(found, total=len(numbers), what=what)
        for part in parts:
            Part.of(dict(islice(found, len(self._numbers(part))))).write(self._path(part))

    def _computed(self, numbers: Sequence[int]) -> Iterator[tuple[str, Found]]:
        """Key and features (F, T') of clips, or why a clip could not be decoded."""
        items = eval_items(self._clips, numbers, num_workers=self.num_workers)
        with reading(items) as read:
            for item in read:
                if item.clips is None:
                    yield item.key, item.failure
                    continue
                features = self._of(item.clips)[0].cpu().numpy()
                if not np.isfinite(features).all():
                    raise EvaluationError(
                        f"{self.job.stream}: the features of clip {item.key} are not finite; give "
                        "other weights with --init, or --amp none"
                    )
                yield item.key, features

    def _of(self, crops: Crops) -> Tensor:
        """Features of clips, float32 (B, F, T'), on the device."""
        net, machine = self.model.net, self.machine
        net.eval()
        with torch.no_grad(), machine.autocast():
            features = net.features(*network_inputs(crops, machine.device)).float()
        trainable(net, self.job.finetune)
        return features

    def _batch(self, samples: Sequence[Sample]) -> MicroBatch:
        failed = {s.key: self._failed[s.key] for s in samples if s.key in self._failed}
        good = [sample for sample in samples if sample.key not in failed]
        device = self.machine.device
        rows, label_ids = (
            torch.tensor(numbers, dtype=torch.int64, device=device)
            for numbers in ([self._rows[s.key] for s in good], [s.label_id for s in good])
        )
        return MicroBatch([self._features[rows]], label_ids, failed)


def _digests(sample: Sample) -> list[str | None]:
    """Of the bytes of a sample, by stream."""
    return [None if at is None else at.sha256 for at in (sample.rgb_at, sample.flow_at)]
