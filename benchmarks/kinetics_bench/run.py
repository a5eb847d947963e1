"""A run: the networks of an architecture are trained, evaluated and joined.

WORK_DIR/run.json                      the request
         rgb/  flow/  joint/           per network: checkpoint.pt, log.jsonl, tensorboard/;
         rgb/  flow/  joint/           per row: predictions.parquet, result.json
         report.html

An evaluation of given weights leaves the same files, except those of the training.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.data.splits import (
    Selection,
    hold_out,
    require_disjoint,
    require_unseen,
    select,
)
from kinetics_bench.device import Machine
from kinetics_bench.evaluation.evaluate import Test, add_streams, evaluate, usable_recipes
from kinetics_bench.evaluation.results import EVALUATION_PREFIX, Result
from kinetics_bench.inference.networks import (
    RUN,
    Request,
    networks_of_run,
    networks_of_weights,
    read_request,
)
from kinetics_bench.protocols import protocol_named
from kinetics_bench.recipes import Plateau, Recipe
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_bench.training.estimate import TrainingPlan
from kinetics_bench.training.job import TrainingJob, find_checkpoint, require_usable
from kinetics_bench.training.occasions import saving_named
from kinetics_bench.training.trainer import plan_training, train
from kinetics_bench.weights.init import SCRATCH, load_init
from kinetics_tools.core import system
from kinetics_tools.core.errors import EvaluationError, KineticsError, lookup
from kinetics_tools.core.file_cache import FileCache
from kinetics_tools.core.files import digest, write_json
from kinetics_tools.core.store import is_address
from kinetics_tools.shards.reader import ShardFolder

logger = logging.getLogger(__name__)
Before = Literal["keep", "resume", "force"]


def train_and_evaluate(
    request: Request,
    work_dir: Path,
    machine: Machine,
    *,
    before: Before = "keep",
    extend: bool = False,
    cache: Path | None = None,
) -> list[Result]:
    """Train (or continue, or reuse) and evaluate what `request` asks for: one result per row.

    All checks come before the first training step.

    Args:
        request: what to do.
        work_dir: folder for checkpoints and results.
        machine: where to compute.
        before: what to do about trainings that are there: `resume` those that stopped, by `force`
            train all again, or `keep`: refuse those that stopped.
        extend: whether a training of another length goes on to that of the request.
        cache: folder for downloaded weights and samples; None: the user's cache.

    Raises:
        KineticsError: the request cannot be fulfilled, or `work_dir` holds another run.
    """
    resume, force = before == "resume", before == "force"
    jobs, tests, request = _prepared(request, work_dir, machine, cache, is_new=force)
    for job in jobs:
        there = None if force else find_checkpoint(job, machine, resume=resume, extend=extend)
        if there is None or not there.finished:
            require_usable(job, machine)
    if machine.is_main:
        write_json(work_dir / RUN, request.as_json())
    options = {"resume": resume, "force": force, "extend": extend}
    checkpoints = [train(job, machine, **options) for job in jobs]
    return _rows(checkpoints, tests, work_dir, machine)


def plan_run(
    request: Request,
    work_dir: Path,
    machine: Machine,
    *,
    cache: Path | None = None,
    extend: bool = False,
) -> list[TrainingPlan]:
    """What `train_and_evaluate` would train, and how long; nothing is written.

    Raises:
        KineticsError: as there.
    """
    jobs, _, _ = _prepared(request, work_dir, machine, cache)
    return [plan_training(job, machine, extend=extend) for job in jobs]


def _prepared(
    request: Request,
    work_dir: Path,
    machine: Machine,
    cache: Path | None,
    *,
    is_new: bool = False,
) -> tuple[list[TrainingJob], dict[str, Test], Request]:
    """The trainings of a request, their evaluations, and the request with absolute paths."""
    if request.finetune == "last" and request.init == SCRATCH:
        raise EvaluationError(
            "--finetune last trains only the last layer, on the features of given weights; "
            "give these with --init imagenet, kinetics or PATH"
        )
    if not is_new:
        _require_same_kind(request, work_dir)
    data = _open(request, cache)
    request = _with_absolute_paths(request, data)
    jobs, tests = [], {}
    for stream in request.streams:
        job, tests[stream] = _job_and_test(data, request, stream, work_dir, cache)
        jobs.append(job)
    if machine.is_main:
        # All streams have the same clips.
        _log_missing("training", jobs[0].train)
        _log_missing("test", tests[jobs[0].stream].selection)
        _warn_of_chosen_on_test(jobs[0].held_out, tests[jobs[0].stream].selection)
        for job in jobs:
            if "flow" in job.clips:
                _warn_of_clamped_flow(data, job.flow, job.bound)
    return jobs, tests, request


def _open(request: Request, cache: Path | None) -> ShardFolder:
    """The shards of a request. What is read from an address is kept in the cache folder `cache`."""
    kept = None
    if request.cache_bytes and is_address(request.data):
        kept = FileCache(system.cache_dir(cache) / "samples", request.cache_bytes)
        kept.tidy()
    return ShardFolder(request.data, cache=kept)


def _job_and_test(
    data: ShardFolder, request: Request, stream: str, work_dir: Path, cache: Path | None
) -> tuple[TrainingJob, Test]:
    """The training of one network, and its evaluation."""
    recipe = request.choice.recipe(request.arch, stream)
    selected = _select(data, request, stream)
    require_disjoint(selected["train"], selected["test"])
    training, held_out = _with_held_out(data, request, stream, recipe, selected["train"])
    job = TrainingJob(
        arch=request.arch,
        stream=stream,
        recipe=recipe,
        data=data,
        flow=_flow(data, request),
        train=training,
        seed=request.seed,
        folder=work_dir / stream,
        init=load_init(
            request.init,
            arch=request.arch,
            stream=stream,
            num_classes=len(data.labels),
            cache=system.cache_dir(cache),
        ),
        finetune=request.finetune,
        num_workers=request.num_workers,
        held_out=held_out,
        check_every=request.check_every,
        saving=saving_named(request.checkpoint_every, request.keep_checkpoints),
    )
    if job.init is not None:
        _require_unseen(job.init.source, job.init.trained_on, selected["test"])
    return job, _test(data, request, selected["test"], recipe.protocol)


def _with_held_out(
    data: ShardFolder, request: Request, stream: str, recipe: Recipe, train: Selection
) -> tuple[Selection, Selection | None]:
    """What is trained on, and whose loss is looked at; None: nothing's.

    Raises:
        EvaluationError: the held-out clips are needed, and there are none.
    """
    if request.val_split is not None:
        validation = _select(data, request, stream, roles=("val",))["val"]
        require_disjoint(train, validation, role="val")
        return train, validation
    if recipe.held_out:
        return hold_out(train, recipe.held_out, seed=request.seed)
    if isinstance(recipe.schedule, Plateau) or request.check_every:
        why = "--eval-every looks at" if request.check_every else "a plateau schedule needs"
        raise EvaluationError(
            f"{why} the loss of held-out clips, and recipe {recipe.name} holds out none: give "
            "--val-split SPLIT or --set held_out=0.1"
        )
    return train, None


def evaluate_again(
    work_dir: Path,
    changes: Mapping[str, Any],
    machine: Machine,
    *,
    cache: Path | None = None,
    allow_overlap: bool = False,
) -> tuple[list[Result], Path]:
    """Evaluate a finished run again; `changes` replace fields of its request.

    Args:
        work_dir: of the run.
        changes: name of a field -> value.
        machine: where to compute.
        cache: folder for downloaded weights; None: the user's cache.
        allow_overlap: evaluate clips that the weights were trained on too; their number marks the
            result.

    Returns:
        One result per row, and their folder: `work_dir`, or, if data, split or protocol differ from
        those of the run, a folder of their own in it, so that no result is overwritten.
    """
    request = replace(read_request(work_dir), **changes)
    checkpoints = networks_of_run(work_dir, request.stream, cache=cache, best=request.best)
    data = _open(request, cache)
    return _evaluated(checkpoints, data, request, work_dir, machine, allow_overlap=allow_overlap)


def evaluate_weights(
    request: Request,
    work_dir: Path,
    machine: Machine,
    *,
    cache: Path | None = None,
    allow_overlap: bool = False,
) -> tuple[list[Result], Path]:
    """Evaluate the weights `request.init` without training: `request.as_given` is not None.

    Later `evaluate_again` takes `work_dir` as a run that was evaluated only.

    Returns:
        As `evaluate_again`.
    """
    _require_same_kind(request, work_dir)
    checkpoints = networks_of_weights(request.init, request.arch, request.stream, cache=cache)
    data = _open(request, cache)
    return _evaluated(checkpoints, data, request, work_dir, machine, allow_overlap=allow_overlap)


def _evaluated(
    checkpoints: list[Checkpoint],
    data: ShardFolder,
    request: Request,
    work_dir: Path,
    machine: Machine,
    *,
    allow_overlap: bool,
) -> tuple[list[Result], Path]:
    """The rows of `request`: in `work_dir`, or in a folder of it if its run asked for others."""
    original = read_request(work_dir) if (work_dir / RUN).exists() else None
    request = _with_absolute_paths(request, data)
    tests = {}
    for checkpoint in checkpoints:
        selection = _select(data, request, checkpoint.stream, roles=("test",))["test"]
        checkpoint.trained_on = _training_clips(checkpoint, data, request)
        if not allow_overlap:
            is_given = checkpoint.data.train_split is None
            weights = checkpoint.init.source if is_given else str(work_dir / checkpoint.stream)
            _require_unseen(weights, checkpoint.trained_on, selection)
        tests[checkpoint.stream] = _test(data, request, selection, checkpoint.recipe.protocol)
    for checkpoint in checkpoints:
        usable_recipes(checkpoint, tests[checkpoint.stream])  # before any warning
    if machine.is_main:
        _log_missing("test", tests[checkpoints[0].stream].selection)
        for checkpoint in checkpoints:
            if "flow" in checkpoint.recipe.streams:
                _warn_of_clamped_flow(data, tests[checkpoint.stream].flow, checkpoint.data.bound)
    deciding = ("data", "test_split", "protocol", "splits", "flow")
    asked, own = ({n: r.as_json()[n] for n in deciding} for r in (request, original or request))
    if request.best:
        asked["best"] = True
    folder = work_dir if asked == own else work_dir / f"{EVALUATION_PREFIX}{digest(asked)[:8]}"
    rows = _rows(checkpoints, tests, folder, machine)
    # Written last: weights or shards that cannot be used leave no run behind.
    if original is None and machine.is_main:
        write_json(work_dir / RUN, request.as_json())
    return rows, folder


def _log_missing(what: str, selection: Selection) -> None:
    """Say how many clips of a split are not in the shards, and why."""
    missing = selection.missing
    if missing:
        reasons = ", ".join(f"{why} {num}" for why, num in Counter(missing.values()).most_common())
        logger.warning(
            "%s: %d of %d %s clips are not there, such as %s: %s",
            *(selection.name, len(missing), len(missing) + len(selection.samples)),
            *(what, min(missing), reasons),
        )


def _warn_of_chosen_on_test(held_out: Selection | None, test: Selection) -> None:
    shared = set(() if held_out is None else held_out.keys) & set(test.keys)
    if shared:
        logger.warning(
            "%d of the %d clips of the test decide which checkpoint is the best, or when the rate "
            "falls: an accuracy there is of clips that chose the weights",
            *(len(shared), len(test.keys)),
        )


def _warn_of_clamped_flow(data: ShardFolder, flow: str, bound: float) -> None:
    """Say it if flow in the shards is clamped to fewer pixels than the network expects."""
    if bound > data.flow_bound(flow):
        logger.warning(
            "%s: flow-%s is clamped to %g pixels per frame, and these weights expect up to %g: "
            "faster motion looks slower than it is; extract-flow --bound %g makes flow for them",
            *(data.folder, flow, data.flow_bound(flow), bound, bound),
        )


def _training_clips(
    checkpoint: Checkpoint, data: ShardFolder, request: Request
) -> tuple[str, ...] | None:
    """Keys of the clips that a network was trained on; None: unknown."""
    if checkpoint.trained_on is None and request.train_split is not None:
        # Of version 0.1: there is only a hash, of the split that the run still names.
        with suppress(KineticsError):
            chosen = _select(data, request, checkpoint.stream, roles=("train",))["train"]
            if chosen.keys_sha256 == checkpoint.identity.get("training clips"):
                return chosen.keys
    return checkpoint.trained_on


def _require_unseen(weights: str, trained_on: tuple[str, ...] | None, test: Selection) -> None:
    if trained_on is None:
        logger.warning(
            "%s is of an older version, which did not record its training clips: whether %s has "
            "some of them is not known",
            *(weights, test.name),
        )
    require_unseen(weights, trained_on or (), test)


def _require_same_kind(request: Request, work_dir: Path) -> None:
    """Raise EvaluationError if the results of a training and of given weights would mix."""
    if not (work_dir / RUN).exists():
        return
    there = read_request(work_dir)
    if there.as_given != request.as_given:
        what = f"an evaluation of {' '.join(there.as_given)}" if there.as_given else "a training"
        raise EvaluationError(f"{work_dir} holds {what}; choose another --work-dir")


def _test(data: ShardFolder, request: Request, selection: Selection, protocol: str) -> Test:
    return Test(
        data=data,
        selection=selection,
        flow=_flow(data, request),
        protocol=protocol_named(request.protocol or protocol),
        num_workers=request.num_workers,
    )


def _with_absolute_paths(request: Request, data: ShardFolder) -> Request:
    """The request with absolute paths of key files: `evaluate` finds them from any folder."""

    def absolute(split: str) -> str:
        is_file = split not in data.splits and Path(split).is_file()
        return str(Path(split).absolute()) if is_file else split

    return replace(
        request,
        train_split=request.train_split and absolute(request.train_split),
        val_split=request.val_split and absolute(request.val_split),
        test_split=absolute(request.test_split),
    )


def _flow(data: ShardFolder, request: Request) -> str:
    """Name of the flow that the request needs; empty if it needs none."""
    if "flow" not in ARCHS[request.arch].clips_of(request.stream):
        return ""
    if not data.flows:
        raise EvaluationError(
            f"{data.folder} holds no flow; compute it with: extract-flow CLIPS {data.folder}"
            + (", or use --stream rgb" if "rgb" in ARCHS[request.arch].streams else "")
        )
    if request.flow is None and len(data.flows) > 1:
        raise EvaluationError(
            f"{data.folder} holds several flows ({', '.join(data.flows)}); choose with --flow NAME"
        )
    return lookup("flow", request.flow or data.flows[0], {flow: flow for flow in data.flows})


def _select(
    data: ShardFolder, request: Request, stream: str, roles: tuple[str, ...] = ("train", "test")
) -> dict[str, Selection]:
    names = {
        "train": request.train_split or "",
        "test": request.test_split,
        "val": request.val_split or "",
    }
    flow = _flow(data, request)
    streams = ARCHS[request.arch].clips_of(stream)
    return {
        role: select(
            data, names[role], role=role, streams=streams, flow=flow, splits=request.splits
        )
        for role in roles
    }


def _rows(
    checkpoints: list[Checkpoint], tests: Mapping[str, Test], folder: Path, machine: Machine
) -> list[Result]:
    results = [
        evaluate(each, tests[each.stream], folder / each.stream, machine) for each in checkpoints
    ]
    if len(results) == 1:
        return results
    rgb, flow = (result.predictions(folder / result.stream) for result in results)
    predictions = rgb + flow
    seen = {key for checkpoint in checkpoints for key in checkpoint.trained_on or ()}
    joint = add_streams(results[0], results[1], predictions, len(seen & set(predictions.keys)))
    if machine.is_main:
        joint.write(folder / "joint", predictions)
    return [*results, joint]
