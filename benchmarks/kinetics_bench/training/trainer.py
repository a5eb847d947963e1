"""Training of one network, and its checkpoint."""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinetics_bench.archs.layers import BatchNormSingleSampleError
from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS, build
from kinetics_bench.data.loader import (
    CACHE_BYTES,
    Batch,
    BatchPlan,
    ClipDataset,
    Reader,
    Step,
    train_batches,
)
from kinetics_bench.data.splits import Selection
from kinetics_bench.data.views import seeded_rng
from kinetics_bench.device import Machine
from kinetics_bench.recipes import Recipe
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.weights.files import silence_tensorflow
from kinetics_bench.weights.init import SCRATCH, InitWeights
from kinetics_tools.core.console import progress
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import digest, write_text
from kinetics_tools.core.system import num_processors
from kinetics_tools.shards.reader import ShardFolder

LOG = "log.jsonl"
EVENTS = "tensorboard"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """What is trained, from what, on what.

    Attributes:
        start: the weights that it begins from; None: fresh ones.
        finetune: `all`, or `last`: the last layer alone, on features that stay as they are.
        folder: the network's own.
        num_workers: None: as fits.
    """

    arch: str
    stream: str
    recipe: Recipe
    data: ShardFolder
    flow: str
    train: Selection
    seed: int
    folder: Path
    start: InitWeights | None = None
    finetune: str = "all"
    num_workers: int | None = None

    @property
    def clips(self) -> tuple[str, ...]:
        """What the network is called with: `rgb`, `flow` or both."""
        return ARCHS[self.arch].clips_of(self.stream)

    @property
    def data_hash(self) -> str:
        """Over the recipes by which the shards that it reads were made."""
        names = {"rgb": "rgb", "flow": f"flow-{self.flow}"}
        hashes = [self.data.recipes[names[stream]].hash for stream in self.clips]
        return hashes[0] if len(hashes) == 1 else digest(hashes)

    @property
    def bound(self) -> float:
        """Pixels a frame that become 1 in the network's input; 1 where it sees no flow."""
        return self.data.flow_bound(self.flow) if "flow" in self.clips else 1.0

    def identity(self) -> dict[str, Any]:
        """What decides the weights. Jobs of equal identity train the same network."""
        return {
            "arch": self.arch,
            "stream": self.stream,
            "recipe": self.recipe.hash,
            "seed": self.seed,
            "labels": digest(list(self.data.labels)),
            "data recipe": self.data_hash,
            "training clips": self.train.keys_sha256,
            "init": SCRATCH if self.start is None else self.start.sha256,
            "finetune": self.finetune,
        }


def train(
    job: TrainingJob, machine: Machine, *, resume: bool = False, force: bool = False
) -> Checkpoint:
    """The finished checkpoint of `job`: trained, continued, or reused when it is there already.

    The weights follow from the job's identity (on one kind of machine, with one number of
    processes); a run that was stopped and resumed gives the same ones. Files in `job.folder`:
    checkpoint.pt after each epoch, log.jsonl, tensorboard/.

    Raises:
        EvaluationError: the folder holds another training, or half of this one without `resume`.
    """
    if force and machine.is_main:
        shutil.rmtree(job.folder, ignore_errors=True)
    machine.barrier()
    before = found(job, resume=resume)
    if before is not None and before.finished:
        logger.info("%s: reused, trained already (%s)", job.stream, job.folder / CHECKPOINT)
        return before
    return _Training(job, machine, before).run()


def found(job: TrainingJob, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to reuse or continue for `job`; None where there is none.

    Raises:
        EvaluationError: as `train` says.
    """
    path = job.folder / CHECKPOINT
    if not path.exists():
        return None
    before = Checkpoint.read(path)
    other = [what for what, value in job.identity().items() if before.identity.get(what) != value]
    if other:
        raise EvaluationError(
            f"{job.folder} holds another training (not the same {', '.join(other)}); "
            "choose another --work-dir, or give --force to train anew there"
        )
    if not before.finished and not resume:
        raise EvaluationError(
            f"{job.folder} holds a training that stopped after {before.epoch} epochs; "
            "give --resume to continue it, or --force to begin anew"
        )
    return before


class _Training:
    """One training under way."""

    def __init__(self, job: TrainingJob, machine: Machine, before: Checkpoint | None) -> None:
        self.job = job
        self.machine = machine
        recipe = job.recipe
        assert recipe.streams == job.clips, (recipe.streams, job.clips)
        reader = Reader(recipe, job.bound)
        self.clips = ClipDataset.for_training(job.train.samples, reader, seed=job.seed)
        self.plan = BatchPlan(
            len(self.clips), recipe, job.seed, machine.rank, machine.num_processes
        )
        self.num_steps = recipe.schedule.num_steps(self.plan.steps_per_epoch)
        torch.manual_seed(_seed(job.seed, 0, "weights"))
        net = build(
            job.arch,
            job.stream,
            len(job.data.labels),
            dropout=recipe.dropout,
            bn_momentum=recipe.bn_momentum,
        )
        if job.start is not None:
            job.start.load(net)
        machine.place(net)
        self.net = _trainable(net, job.finetune)
        self.optimizer = _optimizer(self.net, recipe)
        self.state = before or self._begin()
        if before is not None:
            self.net.load_state_dict(before.net)
            self.optimizer.load_state_dict(before.optimizer)
            logger.info("%s: continued after epoch %d", job.stream, before.epoch)

    def _begin(self) -> Checkpoint:
        job = self.job
        names = ["rgb", *([f"flow-{job.flow}"] if "flow" in job.clips else [])]
        if job.start is not None and job.start.warning and self.machine.is_main:
            logger.warning("%s: %s", job.stream, job.start.warning)
        return Checkpoint(
            arch=job.arch,
            stream=job.stream,
            identity=job.identity(),
            recipe=job.recipe.as_json(),
            data={
                "labels": list(job.data.labels),
                "recipes": {name: job.data.recipes[name].as_json() for name in names},
                "flow": job.flow,
                "bound": job.bound,
                "train_split": job.train.name,
                "num_train": len(job.train.samples),
            },
            seed=job.seed,
            precision=self.machine.precision,
            net={},
            optimizer={},
            init={
                "source": SCRATCH if job.start is None else job.start.source,
                "sha256": "" if job.start is None else job.start.sha256,
                "finetune": job.finetune,
            },
        )

    def run(self) -> Checkpoint:
        cached = self.clips.cache_in_memory(CACHE_BYTES // self.machine.num_processes)
        first = self.state.epoch
        epochs = range(first, -(-self.num_steps // self.plan.steps_per_epoch))
        batches = train_batches(
            self.clips, self.plan, epochs, num_workers=self._num_workers(cached=cached)
        )
        steps: Iterator[tuple[int, Step]] = self._steps(epochs)
        if self.machine.is_main:
            total = self.num_steps - self.state.step
            steps = progress(steps, total=total, what=f"training {self.job.stream}")
        epoch = _Epoch()
        for number, step in steps:
            if number != epoch.number:
                self._close(epoch)
                epoch = _Epoch(number)
                torch.manual_seed(_seed(self.job.seed, number, f"dropout {self.machine.rank}"))
            self._step(step, batches, epoch)
        self._close(epoch, finished=True)
        return self.state

    def _num_workers(self, *, cached: bool) -> int:
        if self.job.num_workers is not None:
            return self.job.num_workers
        return 0 if cached else num_processors()

    def _steps(self, epochs: range) -> Iterator[tuple[int, Step]]:
        left = self.num_steps - self.state.step
        for epoch in epochs:
            for step in self.plan.steps(epoch):
                if left == 0:
                    return
                left -= 1
                yield epoch, step

    def _step(self, step: Step, batches: Iterator[Batch], epoch: "_Epoch") -> None:
        lr = self.job.recipe.schedule.lr(self.state.step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=self.machine.device)  # loss, right ones, clips
        for _ in step.micro_batches:
            asked = time.monotonic()
            batch = next(batches)
            epoch.waited_s += time.monotonic() - asked
            epoch.failed.update({item.key: item.failure for item in batch.failed})
            if batch.clips is not None:
                sums += self._forward_backward(batch.clips, batch.label_ids, epoch)
        weights = [weight for weight in self.net.parameters() if weight.requires_grad]
        gradients = [_gradient(weight) for weight in weights]
        self.machine.all_reduce_sum([*gradients, sums])
        num_clips = float(sums[2])
        if num_clips > 0:
            for gradient in gradients:
                gradient.div_(num_clips)
            self.optimizer.step()
        epoch.add(sums, lr)
        self.state.step += 1

    def _forward_backward(
        self, clips: Sequence[Tensor], label_ids: Tensor, epoch: "_Epoch"
    ) -> Tensor:
        label_ids = label_ids.to(self.machine.device)
        try:
            with self.machine.autocast():
                logits = self._logits(self.machine.place_clips(clips))
        except BatchNormSingleSampleError as error:
            # Nothing to compare it with: others of its pass could not be decoded, or are not there.
            epoch.lone = str(error)
            return torch.zeros(3, device=self.machine.device)
        # Averaged over the steps of a clip and summed over clips. Steps and clips are one axis: on
        # CUDA torch adds up the loss of (B, K, T') in no fixed order.
        num_steps = logits.shape[2]
        loss = functional.cross_entropy(
            logits.transpose(1, 2).flatten(0, 1),
            label_ids.repeat_interleave(num_steps),
            reduction="sum",
            label_smoothing=self.job.recipe.label_smoothing,
        ).div(num_steps)
        loss.backward()  # type: ignore[no-untyped-call]
        right = (logits[:, :, -1].argmax(dim=1) == label_ids).sum()
        return torch.stack([loss.detach(), right, torch.tensor(len(label_ids), device=loss.device)])

    def _logits(self, clips: Sequence[Tensor]) -> Tensor:
        """What the loss is taken of: (B, K, T'), all time steps or their one prediction."""
        if ARCHS[self.job.arch].loss_at_all_steps:
            return self.net.step_logits(*clips)
        logits: Tensor = self.net(*clips)
        return logits[:, :, None]

    def _close(self, epoch: "_Epoch", *, finished: bool = False) -> None:
        """End an epoch: statistics averaged over the processes, checkpoint, log."""
        if epoch.number < 0:
            return
        if epoch.num_clips == 0:
            why = epoch.lone or next(iter(epoch.failed.values()), "")
            raise EvaluationError(f"{self.job.stream}: no clip could be trained on: {why}")
        statistics = [b for name, b in self.net.named_buffers() if ".running_" in name]
        self.machine.all_reduce_sum(statistics)
        for buffer in statistics:
            buffer.div_(self.machine.num_processes)
        for failed in self.machine.gather(epoch.failed):
            self.state.failed.update(failed)
        self.state.history.append(epoch.row(self.state.step, len(self.state.failed)))
        self.state.epoch = epoch.number + 1
        self.state.finished = finished
        self.state.net = self.net.state_dict()
        self.state.optimizer = self.optimizer.state_dict()
        if self.machine.is_main:
            self.state.write(self.job.folder / CHECKPOINT)
            self._tell()
        self.machine.barrier()

    def _tell(self) -> None:
        # The checkpoint holds the whole history, so that a killed run leaves no line too many.
        history = self.state.history
        lines = [json.dumps(row) + "\n" for row in history]
        write_text(self.job.folder / LOG, "".join(lines))
        row = history[-1]
        # Only here: it imports TensorFlow where that is installed.
        silence_tensorflow()
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.job.folder / EVENTS), purge_step=row["epoch"]) as events:
            for name in ("loss", "top1", "lr", "seconds", "waiting"):
                events.add_scalar(name, row[name], row["epoch"])


@dataclass(slots=True)
class _Epoch:
    """What is counted during an epoch. Number -1: none has begun."""

    number: int = -1
    began_s: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    sums: Tensor | None = None
    lr: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    lone: str = ""  # why a pass of one clip was left out, if one was

    @property
    def num_clips(self) -> int:
        return 0 if self.sums is None else int(self.sums[2])

    def add(self, sums: Tensor, lr: float) -> None:
        self.sums = sums if self.sums is None else self.sums + sums
        self.lr = lr

    def row(self, step: int, num_failed: int) -> dict[str, Any]:
        assert self.sums is not None
        loss, right, num_clips = self.sums.tolist()
        seconds = time.monotonic() - self.began_s
        return {
            "epoch": self.number + 1,
            "step": step,
            "loss": loss / max(num_clips, 1),
            "top1": right / max(num_clips, 1),
            "lr": self.lr,
            "clips": int(num_clips),
            "failed": num_failed,
            "seconds": seconds,
            "waiting": self.waited_s / seconds,
        }


def _gradient(weight: nn.Parameter) -> Tensor:
    # A process without a pass in this step adds nothing to the others' gradients.
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def _trainable(net: Network, finetune: str) -> Network:
    """The network in training mode; for `last`, all but its last layer as it is in a test.

    What is before the last layer then gives features that no step changes: its weights are frozen,
    and its batch norms use their moving statistics and leave them alone. Dropout still drops.
    """
    net.train()
    if finetune == "last":
        for name, weight in net.named_parameters():
            weight.requires_grad_(name.rpartition(".")[0] in net.last_layers)
        for module in net.modules():
            module.training = isinstance(module, nn.Dropout)
    return net


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    kernels = [weight for weight in weights if weight.ndim > 1]
    others = [weight for weight in weights if weight.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # Not fused: on a CPU torch 2.13's fused step takes gradient and weight to lie alike in memory,
    # and mixes their elements up, in silence, where they do not.
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    assert recipe.optimizer == "adamw", recipe.optimizer
    return torch.optim.AdamW(groups, lr=0.0)


def _seed(seed: int, epoch: int, what: str) -> int:
    return int(seeded_rng(seed, epoch, what).integers(2**62))
