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
    require_coverage,
    require_disjoint,
    require_unseen,
    select,
)
from kinetics_bench.data.video_lists import VideoList, read_video_list
from kinetics_bench.device import Machine
from kinetics_bench.evaluation.evaluate import Test, contents_of, covered, evaluate, find_result
from kinetics_bench.evaluation.events import write_events
from kinetics_bench.evaluation.folders import evaluation_folder
from kinetics_bench.evaluation.fusion import add_predictions, joint_row
from kinetics_bench.evaluation.results import RESULT, Result
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
from kinetics_tools.core.files import write_json
from kinetics_tools.core.keys import name_part
from kinetics_tools.core.store import is_address
from kinetics_tools.shards.reader import ShardFolder

logger = logging.getLogger(__name__)
Before = Literal["keep", "resume", "force"]
Planned = Literal["resume", "extend", "force"]


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
        if force and len(ARCHS[request.arch].networks_of("joint")) > 1:
            (work_dir / "joint" / RESULT).unlink(missing_ok=True)  # the sum with the old weights
    options = {"resume": resume, "force": force, "extend": extend}
    checkpoints = [train(job, machine, **options) for job in jobs]
    return _rows(checkpoints, tests, work_dir, machine)


def plan_run(
    request: Request,
    work_dir: Path,
    machine: Machine,
    *,
    cache: Path | None = None,
    before: Planned = "resume",
    clips_per_second: float | None = None,
) -> list[TrainingPlan]:
    """What `train_and_evaluate` would train, and how long; nothing is written.

    Args:
        request: as there.
        work_dir: as there.
        machine: as there.
        cache: as there.
        before: what to do about trainings that are there: go on with them, also to another length,
            or train all again.
        clips_per_second: the rate, where it is known; None: it is measured.

    Raises:
        KineticsError: as there.
    """
    force, extend = before == "force", before == "extend"
    jobs, _, _ = _prepared(request, work_dir, machine, cache, is_new=force)
    return [
        plan_training(job, machine, force=force, extend=extend, clips_per_second=clips_per_second)
        for job in jobs
    ]


def check_run(
    request: Request, work_dir: Path, machine: Machine, *, cache: Path | None = None
) -> None:
    """Raise KineticsError if `train_and_evaluate` would refuse a new run; nothing is logged."""
    jobs, _, _ = _prepared(request, work_dir, machine, cache, is_new=True, is_told=False)
    for job in jobs:
        require_usable(job, machine)


def _prepared(
    request: Request,
    work_dir: Path,
    machine: Machine,
    cache: Path | None,
    *,
    is_new: bool = False,
    is_told: bool = True,
) -> tuple[list[TrainingJob], dict[str, Test], Request]:
    """The trainings of a request, their evaluations, and the request with absolute paths."""
    recipes = [request.choice.recipe(request.arch, stream) for stream in request.streams]
    fixed = next((recipe.name for recipe in recipes if recipe.fixed_features), None)
    if fixed is not None:
        request = replace(request, finetune="last")
    if request.finetune == "last" and request.init == SCRATCH:
        what = "--finetune last" if fixed is None else f"recipe {fixed}"
        raise EvaluationError(
            f"{what} trains only the last layer, on the features of given weights; "
            "give these with --init imagenet, kinetics or PATH"
        )
    if not is_new:
        _require_same_kind(request, work_dir)
    data = _open(request, cache)
    request = _with_absolute_paths(request, data)
    lists = _lists(request, cache)
    jobs, tests = [], {}
    for stream in request.streams:
        job, test = _job_and_test(data, request, stream, work_dir, cache)
        jobs.append(job)
        tests[stream] = replace(test, lists=lists)
    if machine.is_main and is_told:
        # All streams have the same clips.
        _log_clips("training", jobs[0].train)
        _log_clips("test", tests[jobs[0].stream].selection)
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
    require_disjoint(selected["train"], selected["test"], allow_videos=request.allow_overlap)
    require_coverage(selected["test"], request.min_coverage)
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
            num_classes=len(selected["train"].labels),
            cache=system.cache_dir(cache),
        ),
        finetune=request.finetune,
        num_workers=request.num_workers,
        held_out=held_out,
        check_every=request.check_every,
        saving=saving_named(request.checkpoint_every, request.keep_checkpoints),
        features=system.cache_dir(cache) / "features",
    )
    if job.init is not None and not request.allow_overlap:
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
) -> tuple[list[Result], Path]:
    """Evaluate a finished run again; `changes` replace fields of its request.

    Args:
        work_dir: of the run.
        changes: name of a field -> value.
        machine: where to compute.
        cache: folder for downloaded weights; None: the user's cache.

    Returns:
        One result per row, and their folder: `work_dir`, or, if clips or protocol differ from those
        of the run, a folder of their own in it, so that no result is overwritten.
    """
    request = replace(read_request(work_dir), **changes)
    checkpoints = networks_of_run(work_dir, request.stream, cache=cache, best=request.best)
    return _evaluated(checkpoints, request, work_dir, machine, cache=cache)


def evaluate_weights(
    request: Request, work_dir: Path, machine: Machine, *, cache: Path | None = None
) -> tuple[list[Result], Path]:
    """Evaluate the weights `request.init` without training: `request.as_given` is not None.

    Later `evaluate_again` takes `work_dir` as a run that was evaluated only.

    Returns:
        As `evaluate_again`.
    """
    _require_same_kind(request, work_dir)
    checkpoints = networks_of_weights(request.init, request.arch, request.stream, cache=cache)
    return _evaluated(checkpoints, request, work_dir, machine, cache=cache)


def _evaluated(
    checkpoints: list[Checkpoint],
    request: Request,
    work_dir: Path,
    machine: Machine,
    *,
    cache: Path | None,
) -> tuple[list[Result], Path]:
    """The rows of `request`: in `work_dir`, or in a folder of it if its run asked for others."""
    original = read_request(work_dir) if (work_dir / RUN).exists() else None
    data = _open(request, cache)
    request = _with_absolute_paths(request, data)
    lists = _lists(request, cache)
    tests, selected = {}, {}
    for checkpoint in checkpoints:
        stream = checkpoint.stream
        selection = selected[stream] = _select(data, request, stream, roles=("test",))["test"]
        require_coverage(selection, request.min_coverage)
        checkpoint.trained_on = _training_clips(checkpoint, data, request)
        is_given = checkpoint.data.train_split is None
        weights = checkpoint.init.source if is_given else str(work_dir / stream)
        if not request.allow_overlap:
            _require_unseen(weights, checkpoint.trained_on, selection)
        selection = selection.in_labels(checkpoint.labels, weights)
        test = _test(data, request, selection, checkpoint.recipe.protocol)
        tests[stream] = replace(test, lists=lists, best=request.best)
    # Before any warning: flow that cannot be used is an error.
    contents = {each.stream: contents_of(each, tests[each.stream]) for each in checkpoints}
    if machine.is_main:
        _log_tests(checkpoints, tests, selected)
    folder = work_dir
    words = () if original is None else _differing(request, original)
    if original is not None and (request.best or words):
        protocol = tests[checkpoints[0].stream].protocol
        folder = evaluation_folder(work_dir, words, contents, protocol, best=request.best)
    rows = _rows(checkpoints, tests, folder, machine)
    if folder != work_dir and machine.is_main:
        write_json(folder / RUN, request.as_json())
    # Written last: weights or shards that cannot be used leave no run behind.
    if original is None and machine.is_main:
        write_json(work_dir / RUN, request.as_json())
    return rows, folder


def _differing(request: Request, original: Request) -> tuple[str, ...]:
    """What decides an evaluation and differs from the run's own: each as part of a name."""
    names = {
        "test_split": Path(request.test_split).stem
        if Path(request.test_split).is_absolute()
        else request.test_split,
        "protocol": request.protocol or "",
        "data": request.data.rstrip("/").rpartition("/")[2],
        "splits": request.splits.name if request.splits else "",
        "classes": request.classes_name,
        "flow": request.flow or "",
    }
    return tuple(
        name_part(word)
        for name, word in names.items()
        if getattr(request, name) != getattr(original, name)
    )


def _lists(request: Request, cache: Path | None) -> tuple[VideoList, ...]:
    """The lists of videos that the weights were trained on elsewhere."""
    return tuple(read_video_list(each, system.cache_dir(cache)) for each in request.pretrained_on)


def _log_tests(
    checkpoints: list[Checkpoint], tests: Mapping[str, Test], selected: Mapping[str, Selection]
) -> None:
    """Say what of a test is missing, and what networks see other than they were trained on."""
    first = checkpoints[0]
    _log_clips("test", selected[first.stream])
    _log_other_classes(selected[first.stream], len(first.labels))
    for checkpoint in checkpoints:
        if "flow" in checkpoint.recipe.streams:
            test = tests[checkpoint.stream]
            _warn_of_clamped_flow(test.data, test.flow, checkpoint.data.bound)


def _log_other_classes(selection: Selection, num_labels: int) -> None:
    """Say it if a network chooses among more classes than the clips of a test are of."""
    if len(selection.labels) < num_labels:
        logger.info(
            "%s: clips of %d of the network's %d classes, scored against all of these",
            *(selection.name, len(selection.labels), num_labels),
        )


def _log_clips(what: str, selection: Selection) -> None:
    """Say how many clips of a split are not in the shards, and why, and which classes have none."""
    if selection.out_of_scope:
        logger.info(
            "%s: %d %s clips are out of scope, of %d classes that the shards do not have, such as "
            "%s",
            *(selection.name, sum(selection.out_of_scope.values()), what),
            *(len(selection.out_of_scope), min(selection.out_of_scope)),
        )
    if selection.num_unclassed:
        logger.warning(
            "%s: %d %s clips are missing of which these shards do not say the class; whether they "
            "are of --classes is not known, and they are not counted",
            *(selection.name, selection.num_unclassed, what),
        )
    if empty := selection.empty_classes:
        logger.warning(
            "%s: %d of %d classes have no %s clip, such as %s",
            *(selection.name, len(empty), len(selection.labels), what, empty[0]),
        )
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
    found = {
        role: select(
            data, names[role], role=role, streams=streams, flow=flow, splits=request.splits
        )
        for role in roles
    }
    if request.classes is None:
        return found
    return {role: selection.only(request.classes) for role, selection in found.items()}


def _rows(
    checkpoints: list[Checkpoint], tests: Mapping[str, Test], folder: Path, machine: Machine
) -> list[Result]:
    results = [
        evaluate(each, tests[each.stream], folder / each.stream, machine) for each in checkpoints
    ]
    if len(results) == 1:
        return results
    rgb, flow = results
    predictions = add_predictions(
        {each.stream: each.predictions(folder / each.stream) for each in results}
    )
    seen = {key for checkpoint in checkpoints for key in checkpoint.trained_on or ()}
    joint = joint_row(rgb, flow, predictions)
    joint = covered(joint, predictions, tests[checkpoints[0].stream], seen)
    if machine.is_main:
        there = find_result(folder / joint.stream)
        before = None if there is None else there[0]
        if before != joint:
            joint.write(folder / joint.stream, predictions)
        if before is None or before.data.identity != joint.data.identity:
            epoch = max(checkpoint.epoch for checkpoint in checkpoints)
            write_events(folder / joint.stream, joint, predictions, epoch)
    return [*results, joint]
