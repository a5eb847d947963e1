"""Training of one network: steps, epochs, checkpoints, the log."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

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
from kinetics_bench.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    EpochRecord,
    InitRecord,
    TrainingData,
)
from kinetics_bench.weights.files import silence_tensorflow
from kinetics_bench.weights.init import SCRATCH, InitWeights
from kinetics_tools.core.console import progress
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import digest, write_text
from kinetics_tools.core.system import num_processors
from kinetics_tools.shards.reader import ShardFolder
from kinetics_tools.shards.records import RGB, flow_stream

LOG = "log.jsonl"
EVENTS = "tensorboard"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One training: which network, which clips, which recipe.

    Attributes:
        arch: a name in ARCHS.
        stream: `rgb`, `flow` or `joint`.
        recipe: how it is trained.
        data: the shards.
        flow: name of the flow among the shards; empty if the network sees none.
        train: the training clips.
        seed: every random choice follows from it.
        folder: for the checkpoint and the log of this network.
        init: the weights that it starts from; None: random ones.
        finetune: `all`, or `last`: only the last layer, on fixed features.
        num_workers: processes that read clips; None: none if the decoded clips fit in memory, else
            one per processor.
    """

    arch: str
    stream: str
    recipe: Recipe
    data: ShardFolder
    flow: str
    train: Selection
    seed: int
    folder: Path
    init: InitWeights | None = None
    finetune: str = "all"
    num_workers: int | None = None

    @property
    def clips(self) -> tuple[str, ...]:
        """The inputs of the network: `rgb`, `flow` or both."""
        return ARCHS[self.arch].clips_of(self.stream)

    @property
    def data_hash(self) -> str:
        """Hash of the recipes of the shards that the network reads."""
        names = {"rgb": RGB, "flow": flow_stream(self.flow)}
        hashes = [self.data.recipes[names[stream]].hash for stream in self.clips]
        return hashes[0] if len(hashes) == 1 else digest(hashes)

    @property
    def bound(self) -> float:
        """Pixels per frame that are 1 in the network's input; 1 if it sees no flow."""
        return self.data.flow_bound(self.flow) if "flow" in self.clips else 1.0

    def identity(self) -> dict[str, str | int]:
        """What decides the weights: jobs of equal identity train the same network."""
        return {
            "arch": self.arch,
            "stream": self.stream,
            "recipe": self.recipe.hash,
            "seed": self.seed,
            "labels": digest(list(self.data.labels)),
            "data recipe": self.data_hash,
            "training clips": self.train.keys_sha256,
            "init": SCRATCH if self.init is None else self.init.sha256,
            "finetune": self.finetune,
        }


def train(
    job: TrainingJob, machine: Machine, *, resume: bool = False, force: bool = False
) -> Checkpoint:
    """The finished checkpoint of `job`: trained, continued, or reused if it is finished already.

    The weights follow from the job's identity (on one kind of machine, with one number of
    processes); a training that was stopped and resumed gives the same weights. Files in
    `job.folder`: checkpoint.pt after each epoch, log.jsonl, tensorboard/.

    Raises:
        EvaluationError: the folder holds another training, or this one unfinished and `resume` is
            False.
    """
    if force and machine.is_main:
        shutil.rmtree(job.folder, ignore_errors=True)
    machine.barrier()
    before = find_checkpoint(job, resume=resume)
    if before is not None and before.finished:
        logger.info("%s: reused, trained already (%s)", job.stream, job.folder / CHECKPOINT)
        return before
    return _Training(job, machine, before).run()


def find_checkpoint(job: TrainingJob, *, resume: bool) -> Checkpoint | None:
    """The checkpoint of `job` to reuse or to continue; None if there is none.

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
            "choose another --work-dir, or give --force to train again there"
        )
    if not before.finished and not resume:
        raise EvaluationError(
            f"{job.folder} holds a training that stopped after {before.epoch} epochs; "
            "give --resume to continue it, or --force to start over"
        )
    return before


class _Training:
    """A training in progress."""

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
        if job.init is not None:
            job.init.load(net)
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
        streams = [RGB, *([flow_stream(job.flow)] if "flow" in job.clips else [])]
        init = InitRecord(finetune=job.finetune)
        if job.init is not None:
            init = replace(init, source=job.init.source, sha256=job.init.sha256)
            if job.init.warning and self.machine.is_main:
                logger.warning("%s: %s", job.stream, job.init.warning)
        return Checkpoint(
            arch=job.arch,
            stream=job.stream,
            identity=job.identity(),
            recipe=job.recipe,
            data=TrainingData(
                labels=job.data.labels,
                recipes={stream: job.data.recipes[stream] for stream in streams},
                flow=job.flow,
                bound=job.bound,
                train_split=job.train.name,
                num_train=len(job.train.samples),
            ),
            seed=job.seed,
            precision=self.machine.precision,
            net={},
            optimizer={},
            init=init,
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

    def _step(self, step: Step, batches: Iterator[Batch], epoch: _Epoch) -> None:
        lr = self.job.recipe.schedule.lr(self.state.step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=self.machine.device)  # loss, correct predictions, clips
        for _ in step.micro_batches:
            start = time.monotonic()
            batch = next(batches)
            epoch.waited_s += time.monotonic() - start
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
        self, clips: Sequence[Tensor], label_ids: Tensor, epoch: _Epoch
    ) -> Tensor:
        label_ids = label_ids.to(self.machine.device)
        try:
            with self.machine.autocast():
                logits = self._logits(self.machine.place_clips(clips))
        except BatchNormSingleSampleError as error:
            # Batch norm needs two clips: the others of this micro-batch could not be decoded.
            epoch.skipped = str(error)
            return torch.zeros(3, device=self.machine.device)
        # Mean over the time steps, sum over the clips. Time steps and clips are one axis: on CUDA
        # torch sums the loss of (B, K, T') in an order that varies.
        num_steps = logits.shape[2]
        loss = functional.cross_entropy(
            logits.transpose(1, 2).flatten(0, 1),
            label_ids.repeat_interleave(num_steps),
            reduction="sum",
            label_smoothing=self.job.recipe.label_smoothing,
        ).div(num_steps)
        loss.backward()  # type: ignore[no-untyped-call]
        correct = (logits[:, :, -1].argmax(dim=1) == label_ids).sum()
        num_clips = torch.tensor(len(label_ids), device=loss.device)
        return torch.stack([loss.detach(), correct, num_clips])

    def _logits(self, clips: Sequence[Tensor]) -> Tensor:
        """The logits of the loss: (B, K, T'), with T' = 1 if they are averaged."""
        if ARCHS[self.job.arch].loss_at_all_steps:
            return self.net.step_logits(*clips)
        logits: Tensor = self.net(*clips)
        return logits[:, :, None]

    def _close(self, epoch: _Epoch, *, finished: bool = False) -> None:
        """End an epoch: average the statistics over the processes, write checkpoint and log."""
        if epoch.number < 0:
            return
        if epoch.num_clips == 0:
            why = epoch.skipped or next(iter(epoch.failed.values()), "")
            raise EvaluationError(f"{self.job.stream}: no clip could be trained on: {why}")
        statistics = [b for name, b in self.net.named_buffers() if ".running_" in name]
        self.machine.all_reduce_sum(statistics)
        for buffer in statistics:
            buffer.div_(self.machine.num_processes)
        for failed in self.machine.gather(epoch.failed):
            self.state.failed.update(failed)
        self.state.history.append(epoch.record(self.state.step, len(self.state.failed)))
        self.state.epoch = epoch.number + 1
        self.state.finished = finished
        self.state.net = self.net.state_dict()
        self.state.optimizer = self.optimizer.state_dict()
        if self.machine.is_main:
            self.state.write(self.job.folder / CHECKPOINT)
            self._write_log()
        self.machine.barrier()

    def _write_log(self) -> None:
        # From the whole history: a training that was killed leaves no line too many.
        lines = [json.dumps(asdict(record)) + "\n" for record in self.state.history]
        write_text(self.job.folder / LOG, "".join(lines))
        record = self.state.history[-1]
        # Imported here: it imports TensorFlow if that is installed.
        silence_tensorflow()
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.job.folder / EVENTS), purge_step=record.epoch) as events:
            for name in ("loss", "top1", "lr", "seconds", "waiting"):
                events.add_scalar(name, getattr(record, name), record.epoch)


@dataclass(slots=True)
class _Epoch:
    """Counters of one epoch. Number -1: no epoch has begun."""

    number: int = -1
    began_s: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    sums: Tensor | None = None
    lr: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: str = ""  # why a micro-batch of one clip was left out

    @property
    def num_clips(self) -> int:
        return 0 if self.sums is None else int(self.sums[2])

    def add(self, sums: Tensor, lr: float) -> None:
        self.sums = sums if self.sums is None else self.sums + sums
        self.lr = lr

    def record(self, step: int, num_failed: int) -> EpochRecord:
        assert self.sums is not None
        loss, correct, num_clips = self.sums.tolist()
        seconds = time.monotonic() - self.began_s
        return EpochRecord(
            epoch=self.number + 1,
            step=step,
            loss=loss / max(num_clips, 1),
            top1=correct / max(num_clips, 1),
            lr=self.lr,
            clips=int(num_clips),
            failed=num_failed,
            seconds=seconds,
            waiting=self.waited_s / seconds,
        )


def _gradient(weight: nn.Parameter) -> Tensor:
    # A process without a micro-batch in this step adds zeros to the others' gradients.
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def _trainable(net: Network, finetune: str) -> Network:
    """The network in training mode; for `last`, earlier layers in evaluation mode.

    These then give fixed features: their weights are frozen, and their batch norms use their moving
    statistics and do not update them. Dropout is active.
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
    # Not fused: on a CPU the fused step of torch 2.13 assumes that gradient and weight have equal
    # strides. If they have not, it pairs the wrong elements and reports no error.
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    assert recipe.optimizer == "adamw", recipe.optimizer
    return torch.optim.AdamW(groups, lr=0.0)


def _seed(seed: int, epoch: int, what: str) -> int:
    return int(seeded_rng(seed, epoch, what).integers(2**62))
