"""A training to do: what decides its weights, what of it is there, whether it can be done."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import nn

from kinetics_bench.archs.batch_norm import BatchNormSingleSampleError
from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS, CHANNELS, build
from kinetics_bench.data.loader import BatchPlan
from kinetics_bench.data.splits import Selection
from kinetics_bench.device import Machine
from kinetics_bench.recipes import Plateau, Recipe, differing_fields
from kinetics_bench.recipes.recipe import EXTENDED
from kinetics_bench.training.checkpoint import CHECKPOINT, NUMERICS, Checkpoint, Extension
from kinetics_bench.training.occasions import EVERY_TEN_MINUTES, Saving
from kinetics_bench.weights.init import SCRATCH, InitWeights
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import digest
from kinetics_tools.shards.reader import ShardFolder
from kinetics_tools.shards.records import RGB, flow_stream

EACH_PROCESS: Final = "of the clips of each process"
ALL_PROCESSES: Final = "of the clips of all processes"
TORCH_COMPILE: Final = "torch.compile"  # its sums are of another order
NO_COMPILER: Final = "none"
HELD_OUT: Final = "held-out clips"
Identity = dict[str, str | float]
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
        finetune: `all`, or `last`: only the last layer, on fixed features. It is `last` where the
            recipe has `fixed_features`.
        num_workers: processes that read clips; None: none if the decoded clips fit in memory, else
            one per processor.
        saving: how often the checkpoint is written within an epoch, and how many stay.
        held_out: clips that are not trained on: their loss decides the rate of a Plateau schedule,
            and which checkpoint is the best.
        check_every: epochs from one look at them to the next; 0: none, unless the schedule needs
            each.
        features: folder where features are kept that a recipe computes once; None: in `folder`.
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
    saving: Saving = EVERY_TEN_MINUTES
    held_out: Selection | None = None
    check_every: int = 0
    features: Path | None = None

    @property
    def clips(self) -> tuple[str, ...]:
        """The inputs of the network: `rgb`, `flow` or both."""
        return ARCHS[self.arch].clips_of(self.stream)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of the network, in index order: those of the training clips' label ids."""
        return self.train.labels

    @property
    def data_hash(self) -> str:
        """Hash of the recipes of the shards that the network reads."""
        names = {"rgb": RGB, "flow": flow_stream(self.flow)}
        hashes = [self.data.recipes[names[stream]].hash for stream in self.clips]
        return hashes[0] if len(hashes) == 1 else digest(hashes)

    @property
    def bound(self) -> float:
        """Pixels per frame that are 1 in the network's input; 1 if it sees no flow.

        Weights that were trained on flow decide it: they expect the scale that they know.
        """
        if "flow" not in self.clips:
            return 1.0
        of_weights = None if self.init is None else self.init.bound
        return of_weights or self.data.flow_bound(self.flow)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Keys of the clips that its weights are trained on, those of `init` included, sorted."""
        before = () if self.init is None else self.init.trained_on or ()
        return tuple(sorted({*self.train.keys, *before}))

    def identity(self, machine: Machine) -> Identity:
        """What decides the weights: jobs of equal identity train the same network.

        Args:
            machine: trains it.
        """
        return {
            "arch": self.arch,
            "stream": self.stream,
            "recipe": self.recipe.hash,
            "seed": self.seed,
            "labels": digest(list(self.labels)),
            "data recipe": self.data_hash,
            "training clips": self.train.keys_sha256,
            "order, labels or bytes of the training clips": self.train.contents_sha256,
            "init": SCRATCH if self.init is None else self.init.sha256,
            "finetune": self.finetune,
            "flow bound": self.bound,
            "precision": machine.precision,
            "batch norm": ALL_PROCESSES if machine.sync_batch_norm else EACH_PROCESS,
            "compiler": TORCH_COMPILE if machine.compiled else NO_COMPILER,
            "numerics of the code": NUMERICS,
            **self._validation,
        }

    @property
    def _validation(self) -> dict[str, str]:
        """The held-out clips as a part of the identity, where they decide the rate."""
        if self.held_out is None or not isinstance(self.recipe.schedule, Plateau):
            return {}
        return {HELD_OUT: self.held_out.contents_sha256}


def require_usable(job: TrainingJob, machine: Machine) -> None:
    """Raise EvaluationError if the network does not take the recipe's views or micro-batches.

    A micro-batch may have one clip, on which some networks cannot be trained. Where only the last
    layer is trained, the weights before it may not be random.
    """
    plan = plan_of(job, machine)
    with torch.device("meta"):  # shapes only
        net = trainable(new_network(job), job.finetune)
        _require_features(job, net)
        crop = job.recipe.crop_px
        clips = [
            torch.empty(1, CHANNELS[stream], job.recipe.sampling[stream].num, crop, crop)
            for stream in job.clips
        ]
    try:
        net.check(*clips)
    except ValueError as error:
        raise EvaluationError(f"{job.stream}: recipe {job.recipe.name}: {error}") from error
    smallest = plan.smallest_round if machine.syncs else plan.smallest_micro_batch
    if smallest > 1:
        return
    try:
        net(*clips)
    except BatchNormSingleSampleError as error:
        usable = (size for size in range(2, plan.num_clips + 1) if _is_usable(plan, size))
        size = next(usable, None)
        advice = "train on more clips" if size is None else f"give --batch-size {size}"
        raise EvaluationError(
            f"{job.stream}: of {plan.num_clips} training clips in batches of "
            f"{job.recipe.batch_size}, a micro-batch has one clip, on which {job.arch} cannot be "
            f"trained ({error}); {advice}"
        ) from error


def _require_features(job: TrainingJob, net: Network) -> None:
    """Raise EvaluationError if the last layer would be trained on features of random weights."""
    if job.finetune != "last":
        return
    if job.init is None:
        raise EvaluationError(
            f"{job.stream}: only the last layer is trained, on the features of given weights, and "
            "there are none; give --init imagenet, kinetics or PATH"
        )
    missing = job.init.missing_of(net)
    if missing is not None:
        raise EvaluationError(
            f"{job.stream}: only the last layer is trained, and {job.init.source} has no {missing} "
            f"of {job.arch}, so its features would be of random weights; give the weights of a "
            f"trained {job.arch} with --init PATH, or train all layers (--finetune all)"
        )


def _is_usable(plan: BatchPlan, batch_size: int) -> bool:
    """Whether all micro-batches have several clips with another batch size."""
    micro = plan.recipe.micro_batch_size
    if micro == plan.recipe.batch_size:  # the batch size may have cut the recipe's own
        micro = batch_size
    recipe = replace(plan.recipe, batch_size=batch_size, micro_batch_size=min(micro, batch_size))
    return replace(plan, recipe=recipe).smallest_micro_batch > 1


def plan_of(job: TrainingJob, machine: Machine) -> BatchPlan:
    """Which clips each step reads, on this process."""
    num_clips = len(job.train.samples)
    return BatchPlan(num_clips, job.recipe, job.seed, machine.rank, machine.num_processes)


def new_network(job: TrainingJob) -> Network:
    """The network of a job with random weights."""
    recipe = job.recipe
    return build(
        job.arch,
        job.stream,
        len(job.labels),
        dropout=recipe.dropout,
        bn_momentum=recipe.bn_momentum,
    )


def find_checkpoint(
    job: TrainingJob, machine: Machine, *, resume: bool, extend: bool = False
) -> Checkpoint | None:
    """The checkpoint of `job` to reuse or to continue; None if there is none.

    What an older version did not record is not compared. With `extend` the training may be one of
    another length: it then goes on by the schedule of the job's length, and says so.

    Raises:
        EvaluationError: as `train` says.
    """
    path = job.folder / CHECKPOINT
    if not path.exists():
        return None
    before = Checkpoint.read(path)
    if extend:
        job = _extended(before, job, machine)
    there, here = _identities(before, job, machine)
    other = [_difference(what, there[what], here[what]) for what in here if what in there]
    told = {
        "recipe": ", ".join(differing_fields(before.recipe, job.recipe)),
        HELD_OUT: _difference_of_splits(before.val_split, job.held_out),
    }
    other = [f"{what} ({told[what]})" if told.get(what) else what for what in other if what]
    if other:
        raise EvaluationError(
            f"{job.folder} holds another training, not the same {', '.join(other)}; "
            "choose another --work-dir, or give --force to train again there"
        )
    if not before.finished and not resume:
        raise EvaluationError(
            f"{job.folder} holds a training that stopped after {before.epoch} epochs; "
            "give --resume to continue it, or --force to start over"
        )
    return before


def _difference_of_splits(there: str, held_out: Selection | None) -> str:
    """Where held-out clips were and are from; empty if both have one name."""
    now = "none" if held_out is None else held_out.name
    return "" if there == now else f"{there} there, {now} now"


def has_saturated(done: Checkpoint, job: TrainingJob, machine: Machine) -> bool:
    """Whether the loss of a training has saturated, so that a longer one would be the same."""
    # A longer training does not have the look at the last step if that is within an epoch.
    is_whole = done.step % plan_of(job, machine).steps_per_epoch == 0
    return is_whole and done.recipe.schedule.is_over(done.losses)


def _extended(before: Checkpoint, job: TrainingJob, machine: Machine) -> TrainingJob:
    """Give a checkpoint the longer schedule of `job`, if nothing else of the recipe differs.

    Returns the job that the checkpoint then is of. One whose loss has saturated ended by itself: it
    keeps its schedule, and the job gets that.
    """
    there, here = before.recipe.schedule, job.recipe.schedule
    is_same = replace(before.recipe, schedule=here).hash == job.recipe.hash
    if there == here or not is_same or not there.differs_only_in_length(here):
        return job
    if here.length < there.length:
        raise EvaluationError(
            f"{job.folder} holds a training of {there.length} {there.unit}, which is longer than "
            f"{here.length}: a training can be made longer, not shorter"
        )
    if has_saturated(before, job, machine):
        return replace(job, recipe=before.recipe)
    before.extended.append(Extension(step=before.step, epoch=before.epoch, recipe=before.recipe))
    # By its name, as its schedule is not that of a training of this length from the start.
    before.recipe = replace(job.recipe, name=f"{job.recipe.name}{EXTENDED}{before.step}")
    before.identity = {
        **before.identity,
        "recipe": job.recipe.hash,
        "extended": digest([[each.step, each.recipe.hash] for each in before.extended]),
    }
    before.finished = False
    return job


def _identities(
    before: Checkpoint, job: TrainingJob, machine: Machine
) -> tuple[Identity, Identity]:
    """What a checkpoint and a job say of their identity, and of the clips that are looked at."""
    there, here = _recorded_identity(before), job.identity(machine)
    if before.best is not None:  # else none were looked at, and they may be any
        here[HELD_OUT] = "" if job.held_out is None else job.held_out.contents_sha256
        if before.held_out:
            there[HELD_OUT] = before.held_out
    return there, here


def _recorded_identity(before: Checkpoint) -> Identity:
    # What checkpoints of older versions say elsewhere, or had no choice of.
    return {
        "precision": before.precision,
        "flow bound": before.data.bound,
        "batch norm": EACH_PROCESS,
        "compiler": NO_COMPILER,
        **before.identity,
    }


def _difference(what: str, there: str | float, here: str | float) -> str:
    """What differs, with both values where these say something; empty if they are equal."""
    if there == here:
        return ""
    is_readable = max(len(str(there)), len(str(here))) < 64  # else it is a hash
    return f"{what} ({there} there, {here} now)" if is_readable else what


def warn_of_older_version(before: Checkpoint, job: TrainingJob, machine: Machine) -> None:
    """Say what of its identity a checkpoint did not record, and so was not compared."""
    there, here = _identities(before, job, machine)
    unknown = [what for what in here if what not in there]
    if unknown:
        logger.warning(
            "%s is of an older version, which did not record: %s; if one of them differs, train "
            "again with --force",
            job.folder / CHECKPOINT,
            ", ".join(unknown),
        )


def trainable(net: Network, finetune: str) -> Network:
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
