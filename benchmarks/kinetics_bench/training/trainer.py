"""Training of one network: steps, epochs, checkpoints, the log."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn import functional

from kinetics_bench.archs.batch_norm import BatchNormSingleSampleError
from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.data.loader import Step, reading
from kinetics_bench.data.views import seeded_rng
from kinetics_bench.device import Machine
from kinetics_bench.recipes import Plateau
from kinetics_bench.training import estimate
from kinetics_bench.training.checkpoint import (
    AGAIN,
    BEST,
    CHECKPOINT,
    STATISTIC,
    BegunEpoch,
    Checkpoint,
    InitRecord,
    Look,
    LossScale,
    TrainingData,
    keep_earlier,
)
from kinetics_bench.training.epochs import Epoch
from kinetics_bench.training.estimate import TrainingPlan
from kinetics_bench.training.examples import ClipExamples, Examples, MicroBatch
from kinetics_bench.training.features import FeatureExamples
from kinetics_bench.training.job import (
    TrainingJob,
    find_checkpoint,
    has_saturated,
    new_network,
    plan_of,
    require_usable,
    trainable,
    warn_of_older_version,
)
from kinetics_bench.training.log import TrainingLog
from kinetics_bench.training.occasions import Occasions
from kinetics_bench.training.optimizers import gradient_of, new_optimizer, restore
from kinetics_tools.core.console import progress, time_text
from kinetics_tools.core.errors import EvaluationError, ShardError
from kinetics_tools.shards.records import RGB, flow_stream

MAX_NAMED = 8  # clips in a message
logger = logging.getLogger(__name__)


def train(
    job: TrainingJob,
    machine: Machine,
    *,
    resume: bool = False,
    force: bool = False,
    extend: bool = False,
) -> Checkpoint:
    """The finished checkpoint of `job`: trained, continued, or reused if it is finished already.

    The weights follow from the job's identity (on one kind of machine, with one number of
    processes); a training that was stopped after any step and resumed gives the same weights. Files
    in `job.folder`: checkpoint.pt, at the end of each epoch and as `job.saving` says; best.pt, that
    of the epoch that was best on the held-out clips; log.jsonl; tensorboard/. With `extend` a
    training of another length goes on to that of `job`.

    Raises:
        EvaluationError: the folder holds another training, or this one unfinished and `resume` is
            False; or the training diverges, or a process that reads clips is killed. The last
            checkpoint, of finite weights, then stays.
    """
    if force and machine.is_main:
        shutil.rmtree(job.folder, ignore_errors=True)
    machine.barrier()
    before = find_checkpoint(job, machine, resume=resume or extend, extend=extend)
    if before is not None and machine.is_main:
        warn_of_older_version(before, job, machine)
    if before is not None and before.finished:
        logger.info(
            "%s: reused, trained already (%s%s)",
            *(job.stream, job.folder / CHECKPOINT, _past(before, job, machine)),
        )
        return before
    require_usable(job, machine)
    return _Training(job, machine, before).run()


def plan_training(
    job: TrainingJob,
    machine: Machine,
    *,
    force: bool = False,
    extend: bool = False,
    clips_per_second: float | None = None,
) -> TrainingPlan:
    """What `train` would do, and how long; nothing is written.

    `clips_per_second` is the rate, where it is known; None: it is measured.

    Raises:
        EvaluationError: as `train`.
    """
    before = None if force else find_checkpoint(job, machine, resume=True, extend=extend)
    plan = plan_of(job, machine)
    num_steps = job.recipe.schedule.num_steps(plan.steps_per_epoch)
    ahead = TrainingPlan(
        stream=job.stream,
        recipe=f"{job.recipe.name} {job.recipe.hash[:8]}",
        num_clips=plan.num_clips,
        num_held_out=0 if job.held_out is None else len(job.held_out.samples),
        num_steps=num_steps,
        steps_done=0 if before is None else before.step,
        num_epochs=num_steps / plan.steps_per_epoch,
        finished=before is not None and before.finished,
    )
    if ahead.finished:
        return ahead
    require_usable(job, machine)
    clips_left = (num_steps - ahead.steps_done) / plan.steps_per_epoch * plan.num_clips
    if clips_per_second is not None:
        seconds = clips_left / clips_per_second
        return replace(ahead, seconds=seconds, clips_per_second=clips_per_second)
    seconds, each = _Training(job, machine, before).expected_seconds(clips_left)
    return replace(ahead, seconds=seconds, clips_per_second=1 / each)


def _past(done: Checkpoint, job: TrainingJob, machine: Machine) -> str:
    """What is to be known of the length of a finished training."""
    texts = [f", made longer at step {each.step}" for each in done.extended]
    if has_saturated(done, job, machine):
        texts.append(
            f", ended at step {done.step}, as the loss of its held-out clips has saturated: a "
            "greater length changes nothing"
        )
    return "".join(texts)


class _Training:
    """A training in progress."""

    def __init__(self, job: TrainingJob, machine: Machine, before: Checkpoint | None) -> None:
        self.job = job
        self.machine = machine
        recipe = job.recipe
        assert recipe.streams == job.clips, (recipe.streams, job.clips)
        self.plan = plan_of(job, machine)
        self.num_steps = recipe.schedule.num_steps(self.plan.steps_per_epoch)
        torch.manual_seed(_seed(job.seed, 0, "weights"))
        net = new_network(job)
        if job.init is not None:
            job.init.load(net)
        machine.place(net)
        self.net = trainable(net, job.finetune)
        kind = FeatureExamples if recipe.fixed_features else ClipExamples
        self.examples: Examples = kind(job, machine, net)
        self._logits = torch.compile(self._eager_logits) if machine.compiled else self._eager_logits
        self.optimizer = new_optimizer(self.net, recipe)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.float16)
        self.state = before or self._begin()
        self.state.trained_on = job.trained_on
        if self.state.best is None:  # else they are those of the looks before
            self._record_held_out()
        self._reopen_epoch()
        self._written = self.state.step  # of the checkpoint that is there
        self._status, self._clips_done, self._started_s = "", 0, 0.0
        self.done = self.state.step - self.state.epoch * self.plan.steps_per_epoch  # of its epoch
        is_begun = self.state.begun is not None
        if self.done not in range(self.plan.steps_per_epoch) or is_begun != (self.done > 0):
            raise EvaluationError(
                f"{job.folder / CHECKPOINT} is of step {self.state.step} after epoch "
                f"{self.state.epoch}, which cannot be; {AGAIN}"
            )
        if before is not None:
            restore(self.net, self.optimizer, before, job.folder / CHECKPOINT)
            self._restore_statistics(before)
            if before.loss_scale is not None:
                scale = before.loss_scale
                known = {"scale": scale.scale, "_growth_tracker": scale.steps}
                self.scaler.load_state_dict(self.scaler.state_dict() | known)
            logger.info(
                "%s: continued after step %d of %d", job.stream, before.step, self.num_steps
            )

    def _record_held_out(self) -> None:
        held_out, state = self.job.held_out, self.state
        state.num_held_out = 0 if held_out is None else len(held_out.samples)
        state.val_split = "" if held_out is None else held_out.name
        state.held_out = "" if held_out is None else held_out.contents_sha256

    def _reopen_epoch(self) -> None:
        """Where a training that ended within an epoch was extended, that epoch has not ended."""
        state, whole = self.state, self.state.step // self.plan.steps_per_epoch
        was_extended = bool(state.extended) and state.extended[-1].step == state.step
        if not was_extended or whole >= state.epoch or not state.history:
            return
        last = state.history.pop()
        state.epoch = whole
        state.begun = BegunEpoch(
            loss=last.loss * last.clips,
            correct=round(last.top1 * last.clips),
            clips=last.clips,
            seconds=last.seconds,
            waited_s=last.waiting * last.seconds,
        )

    def _restore_statistics(self, before: Checkpoint) -> None:
        """Batch norm's moving statistics as this process had them, in an epoch that was begun."""
        if len(before.statistics) == self.machine.num_processes:
            buffers = dict(self.net.named_buffers())
            for name, values in before.statistics[self.machine.rank].items():
                buffers[name].copy_(values)
        elif before.statistics and self.machine.is_main and not self.machine.sync_batch_norm:
            logger.warning(
                "%s: this epoch was begun by %d processes and is continued by %d: every clip is "
                "seen once, but batch norm's moving statistics begin with the mean of theirs",
                *(self.job.stream, len(before.statistics), self.machine.num_processes),
            )

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
            identity=job.identity(self.machine),
            recipe=job.recipe,
            data=TrainingData(
                labels=job.labels,
                recipes={stream: job.data.recipes[stream] for stream in streams},
                flow=job.flow,
                bound=job.bound,
                train_split=job.train.name,
                num_train=len(job.train.samples),
                missing_train=dict(job.train.missing),
            ),
            seed=job.seed,
            precision=self.machine.precision,
            net={},
            optimizer={},
            init=init,
        )

    def run(self) -> Checkpoint:
        self._tell_length()
        self.examples.prepare()
        first = self.state.epoch
        epochs = range(first, -(-self.num_steps // self.plan.steps_per_epoch))
        self._tell_hours()
        self._started_s = time.monotonic()
        steps: Iterator[tuple[int, Step]] = self._steps(epochs, self.done)
        if self.machine.is_main:
            total = self.num_steps - self.state.step
            what = f"training {self.job.stream}"
            steps = progress(steps, total=total, what=what, status=lambda: self._status)
        log = TrainingLog(self.job.folder)
        views = self.examples.training(epochs, self.done)
        epoch = Epoch() if self.state.begun is None else Epoch.begun(first, self.state.begun)
        occasions, stopping = Occasions(self.job.saving), False
        with closing(log), reading(views) as batches, occasions.heeding_signals():
            for number, step in steps:
                if number != epoch.number:
                    if epoch.number >= 0:
                        self._close(epoch, log)
                        occasions.saved()
                        if self.state.finished:  # before its last step: the loss has saturated
                            return self.state
                    epoch = Epoch(number)
                if stopping:  # its checkpoint is written
                    occasions.stop()
                asked, stopping = self._step(step, batches, epoch, occasions)
                if asked and self.state.step % self.plan.steps_per_epoch:  # not at its end
                    self._save_within(epoch)
                    occasions.saved()
            self._close(epoch, log)
        return self.state

    def _tell_length(self) -> None:
        if not self.machine.is_main:
            return
        job, plan = self.job, self.plan
        text = estimate.length_text(plan, self.num_steps, self.state.step)
        logger.info("%s: %s", job.stream, text)
        if self.state.num_held_out:
            logger.info("%s: %d clips are held out", job.stream, self.state.num_held_out)
        better = estimate.better_recipe(plan, self.num_steps, job.arch, job.stream)
        enlarged = estimate.enlarged(job.recipe, self._stored_short_side())
        for warning in filter(None, (better, enlarged)):
            logger.warning("%s: %s", job.stream, warning)

    def _stored_short_side(self) -> int | None:
        """Of the frames in the shards, pixels; None: the first clip cannot be decoded."""
        short_side = self.state.data.clip_recipe.short_side
        if short_side is None:  # that of each video: the first one stands for all
            with suppress(ShardError):
                first = self.job.train.samples[0]
                read = first.rgb if "rgb" in self.job.clips else first.codes
                height, width = read([0]).shape[1:3]
                return int(min(height, width))
        return short_side

    def expected_seconds(self, num_clips: float) -> tuple[float, float]:
        """How long it takes to train on so many clips, and of each of them, as measured."""
        self._tell_length()
        each = self._seconds_per_clip()
        return self.examples.seconds_before() + num_clips * each, each

    def _tell_hours(self) -> None:
        """Measure and log the duration of a training that is long enough for it."""
        steps_left = self.num_steps - self.state.step
        if estimate.num_passes(self.plan, steps_left) < estimate.MIN_PASSES:
            return
        seconds = self._seconds_per_clip()
        clips_left = steps_left / self.plan.steps_per_epoch * self.plan.num_clips
        if self.machine.is_main:
            logger.info(
                "%s: about %s at the measured %.3g clips per second",
                self.job.stream,
                time_text(clips_left * seconds),
                1 / seconds,
            )

    def _seconds_per_clip(self) -> float:
        """Measured, of all processes together."""
        seconds = self.examples.seconds_per_clip(
            lambda inputs, label_ids: self._forward_backward(inputs, label_ids, Epoch())
        )
        return seconds / self.machine.num_processes

    def _steps(self, epochs: range, done: int) -> Iterator[tuple[int, Step]]:
        left = self.num_steps - self.state.step
        for epoch in epochs:
            for step in islice(self.plan.steps(epoch), done if epoch == epochs[0] else 0, None):
                if left == 0:
                    return
                left -= 1
                yield epoch, step

    def _step(
        self, step: Step, batches: Iterator[MicroBatch], epoch: Epoch, occasions: Occasions
    ) -> tuple[bool, bool]:
        """One step; whether a process asks for a checkpoint, and whether one asks to stop."""
        schedule = self.job.recipe.schedule
        lr = schedule.lr(self.state.step, self.num_steps, self.state.losses)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        device = self.machine.device
        parts = []  # of each micro-batch: loss, correct predictions, clips
        together = self.machine.syncs  # in each forward pass, also those who have no clip for it
        for at in range(step.num_rounds if together else len(step.micro_batches)):
            # Of the whole batch: so dropout does not depend on the number of processes.
            number = self.machine.rank + at * self.machine.num_processes
            torch.manual_seed(_seed(self.job.seed, self.state.step, f"dropout {number}"))
            start = time.monotonic()
            batch = next(batches) if at < len(step.micro_batches) else self.examples.nothing()
            epoch.waited_s += time.monotonic() - start
            epoch.failed.update(batch.failed)
            if together or len(batch.label_ids):
                parts.append(self._forward_backward(batch.inputs, batch.label_ids, epoch))
            else:
                parts.append(torch.zeros(3, device=device))
            del batch  # its memory is free for the next one
        sums = sum(parts, torch.zeros(3, device=device))
        weights = [weight for weight in self.net.parameters() if weight.requires_grad]
        gradients = [gradient_of(weight) for weight in weights]
        asks = torch.tensor(occasions.after_step(is_main=self.machine.is_main)).to(sums)
        self.machine.all_reduce_sum([*gradients, sums, asks])
        loss, _, num_clips = sums.tolist()
        self.scaler.unscale_(self.optimizer)
        # A gradient can overflow where the loss does not. In float16 it then may be the scale's
        # fault: such a step is left out, and the next scale is lower.
        is_finite = math.isfinite(float(nn.utils.get_total_norm(gradients)))
        if not math.isfinite(loss) or not (is_finite or self.scaler.get_scale() > 1):
            self._stop_diverged(step, parts, epoch)
        if num_clips > 0:
            for gradient in gradients:
                gradient.div_(num_clips)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        epoch.add(sums, lr)
        self.state.step += 1
        if num_clips:
            self._tell(epoch, int(num_clips))
        asked, stopping = asks.tolist()
        return asked > 0, stopping > 0

    def _stop_diverged(self, step: Step, parts: Sequence[Tensor], epoch: Epoch) -> NoReturn:
        """Raise EvaluationError about a step whose loss or gradient is not finite."""
        samples = self.job.train.samples
        mine = [
            (
                float(part[0]),
                [samples[at].key for at in numbers if samples[at].key not in epoch.failed],
            )
            for numbers, part in zip(step.micro_batches, parts, strict=False)  # some had no clip
        ]
        batches = [each for part in self.machine.gather(mine) for each in part]
        bad = [each for each in batches if not math.isfinite(each[0])]
        what = f"the loss is {bad[0][0]:g}" if bad else "the gradient is not finite"
        keys = sorted(key for _, names in bad or batches for key in names)
        named = ", ".join(keys[:MAX_NAMED])
        more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
        raise self._diverged(
            f"{what} in step {self.state.step + 1} (epoch {epoch.number + 1}), on {named}{more}"
        )

    def _diverged(self, what: str) -> EvaluationError:
        kept = (
            f"{self.job.folder / CHECKPOINT} is that of epoch {self.state.epoch}"
            if self.state.epoch
            else "there is no checkpoint yet"
        )
        other = "another --recipe or --batch-size"
        if self.machine.precision != "float32":
            other = f"--amp none, {other}"
        return EvaluationError(
            f"{self.job.stream}: {what}: the training diverged and stopped ({kept}); train with "
            f"{other}, in another --work-dir"
        )

    def _forward_backward(
        self, inputs: Sequence[Tensor], label_ids: Tensor, epoch: Epoch
    ) -> Tensor:
        """Sums over the clips of a micro-batch: of the loss, of correct predictions, of clips."""
        try:
            with self.machine.autocast(), _compiling():
                logits = self._logits(inputs)
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
        with _compiling():  # the backward pass is compiled when it is first needed
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        correct = (logits[:, :, -1].argmax(dim=1) == label_ids).sum()
        num_clips = torch.tensor(len(label_ids), device=loss.device)
        return torch.stack([loss.detach(), correct, num_clips])

    def _eager_logits(self, inputs: Sequence[Tensor]) -> Tensor:
        """The logits of the loss: (B, K, T'), with T' = 1 if they are averaged."""
        model = self.examples.model
        if ARCHS[self.job.arch].loss_at_all_steps:
            return model.step_logits(*inputs)
        logits: Tensor = model(*inputs)
        return logits[:, :, None]

    def _tell(self, epoch: Epoch, num_clips: int) -> None:
        """What the progress shows beside the number of steps."""
        if not self.machine.is_main or epoch.sums is None:
            return
        self._clips_done += num_clips
        loss, correct, clips = epoch.sums.tolist()
        rate = self._clips_done / max(time.monotonic() - self._started_s, 1e-9)
        self._status = (
            f"loss {loss / clips:.3f}, top-1 {100 * correct / clips:.1f} %, lr {epoch.lr:.2g}, "
            f"{rate:.3g} clips/s"
        )

    def _check(self) -> tuple[float, float]:
        """Loss and top-1 of the held-out clips: of the middle of each, by moving statistics."""
        machine = self.machine
        sums, failed = torch.zeros(3, device=machine.device), dict[str, str]()
        self.net.eval()
        with torch.no_grad(), reading(self.examples.checked()) as batches:
            for batch in batches:
                failed.update(batch.failed)
                if not len(batch.label_ids):
                    continue
                with machine.autocast():
                    logits = self.examples.model(*batch.inputs)
                label_ids = batch.label_ids
                loss = functional.cross_entropy(logits, label_ids, reduction="sum")
                right = (logits.argmax(dim=1) == label_ids).sum()
                num = torch.tensor(len(label_ids), device=machine.device)
                sums += torch.stack([loss, right, num])
        trainable(self.net, self.job.finetune)
        machine.all_reduce_sum([sums])
        loss_sum, num_right, num_clips = sums.tolist()
        failed = {key: why for part in machine.gather(failed) for key, why in part.items()}
        num_checked = self.examples.num_held_out
        if failed and machine.is_main:
            logger.warning(
                "%s: %d of %d held-out clips could not be decoded and do not count, such as %s",
                *(self.job.stream, len(failed), num_checked, next(iter(failed.values()))),
            )
        if not num_clips:
            raise EvaluationError(f"{self.job.stream}: no held-out clip could be decoded")
        if not math.isfinite(loss_sum):
            raise self._diverged(f"the loss of the held-out clips is {loss_sum:g}")
        return loss_sum / num_clips, num_right / num_clips

    @property
    def _is_due(self) -> bool:
        """Whether the held-out clips are looked at, at the end of the epoch that just ended."""
        if not self.examples.num_held_out:
            return False
        every = 1 if isinstance(self.job.recipe.schedule, Plateau) else self.job.check_every
        is_last = self.state.step == self.num_steps
        return every > 0 and (self.state.epoch % every == 0 or is_last)

    def _close(self, epoch: Epoch, log: TrainingLog) -> None:
        """End an epoch: average the statistics over the processes, write checkpoint and log."""
        if epoch.skipped:
            logger.warning(
                "%s: a clip was left alone and not trained on: %s", self.job.stream, epoch.skipped
            )
        if epoch.num_clips == 0:
            why = epoch.skipped or next(iter(epoch.failed.values()), "")
            raise EvaluationError(f"{self.job.stream}: no clip could be trained on: {why}")
        self._average_statistics()
        bad = next((n for n, t in self.net.state_dict().items() if not t.isfinite().all()), None)
        if bad is not None:  # by the last step: a step before it would have had another loss
            raise self._diverged(f"{bad} is not finite after step {self.state.step}")
        self._gather_failed(epoch)
        self.state.epoch = epoch.number + 1
        record = epoch.record(self.state.step, len(self.state.failed))
        if self._is_due:
            val_loss, val_top1 = self._check()
            record = replace(record, val_loss=val_loss, val_top1=val_top1)
            look = Look(step=self.state.step, loss=val_loss, top1=val_top1)
            self.state.best = look if look.is_better_than(self.state.best) else self.state.best
            if self.machine.is_main:
                logger.info(
                    "%s: epoch %d: held-out clips: loss %.4g, top-1 %.1f %%",
                    *(self.job.stream, self.state.epoch, val_loss, 100 * val_top1),
                )
        self.state.history.append(record)
        is_over = self.job.recipe.schedule.is_over(self.state.losses)
        self.state.finished = is_over or self.state.step == self.num_steps
        self.state.begun, self.state.statistics = None, []
        if self.machine.is_main:
            # First, as who is killed between them does this epoch, and its line, again.
            log.add(self.state.history)
        self._write()

    def _save_within(self, epoch: Epoch) -> None:
        """Write the checkpoint in the middle of an epoch; nothing else changes."""
        self._gather_failed(epoch)
        statistics = {n: b for n, b in self.net.named_buffers() if STATISTIC in n}
        own = {name: buffer.detach().cpu().clone() for name, buffer in statistics.items()}
        self.state.statistics = self.machine.gather(own)
        self.state.begun = epoch.progress()
        self._average_statistics()
        self._write()
        for name, buffer in statistics.items():
            buffer.copy_(own[name])

    def _average_statistics(self) -> None:
        statistics = [b for name, b in self.net.named_buffers() if STATISTIC in name]
        self.machine.all_reduce_sum(statistics)
        for buffer in statistics:
            buffer.div_(self.machine.num_processes)

    def _gather_failed(self, epoch: Epoch) -> None:
        for failed in self.machine.gather(epoch.failed):
            self.state.failed.update(failed)

    def _write(self) -> None:
        """Write the checkpoint; of those before, as many stay as the job says."""
        self.state.net = self.net.state_dict()
        self.state.optimizer = self.optimizer.state_dict()
        if self.scaler.is_enabled():
            values = self.scaler.state_dict()
            scale = LossScale(scale=values["scale"], steps=values["_growth_tracker"])
            self.state.loss_scale = scale
        is_best = self.state.best is not None and self.state.best.step == self.state.step
        if self.machine.is_main:
            if is_best:  # first: who is killed between them does this epoch again
                self.state.write(self.job.folder / BEST)
            keep_earlier(self.job.folder, self.job.saving.keep - 1, self._written)
            self.state.write(self.job.folder / CHECKPOINT)
            self._written = self.state.step
        self.machine.barrier()


@contextmanager
def _compiling() -> Iterator[None]:
    """A block that may compile; raises EvaluationError if a compiler is missing or fails."""
    try:
        yield
    except BackendCompilerFailed as error:
        why = error.inner_exception
        first = next(filter(None, map(str.strip, str(why).splitlines())), type(why).__name__)
        raise EvaluationError(
            f"torch cannot compile the network ({first}); install g++, or for a GPU Triton, or "
            "leave out --compile"
        ) from error


def _seed(seed: int, epoch: int, what: str) -> int:
    return int(seeded_rng(seed, epoch, what).integers(2**62))
