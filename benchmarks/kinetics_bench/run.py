"""A run: the networks of an architecture trained and evaluated, joined, and reported.

WORK_DIR/run.json                      what was asked for
         rgb/  flow/  joint/           checkpoint.pt, log.jsonl, tensorboard/ of each network,
         rgb/  flow/  joint/           and predictions.parquet, result.json of each row
         report.html

An evaluation of weights as they are leaves the same, but for the training's files.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.data.splits import Selection, require_disjoint, select
from kinetics_bench.device import Machine
from kinetics_bench.evaluation.evaluate import Test, add_streams, evaluate
from kinetics_bench.evaluation.results import EVALUATION, PREDICTIONS, Predictions, Result
from kinetics_bench.inference.networks import (
    RUN,
    Request,
    networks_of_run,
    networks_of_weights,
    read_request,
)
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.recipes import recipe_for
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_bench.training.trainer import TrainingJob, found, train
from kinetics_bench.weights.init import SCRATCH, load_init
from kinetics_tools.core import system
from kinetics_tools.core.errors import EvaluationError, lookup
from kinetics_tools.core.files import digest, write_json
from kinetics_tools.shards.reader import ShardFolder


def benchmark(
    request: Request,
    work_dir: Path,
    machine: Machine,
    *,
    resume: bool,
    force: bool,
    cache: Path | None = None,
) -> list[Result]:
    """Train (continue, reuse) and evaluate what `request` asks for: one result a row.

    Everything that can be refused is, before the first step. `cache` keeps fetched weights; None:
    the user's own.
    """
    if request.finetune == "last" and request.init == SCRATCH:
        raise EvaluationError(
            "--finetune last trains the last layer on features that are there already; "
            "say whose, with --init imagenet, kinetics or PATH"
        )
    if not force:
        _refuse_other(request, work_dir)
    data = ShardFolder(request.data)
    request = _anywhere(request, data)
    tests, jobs = {}, []
    for stream in request.streams:
        recipe = recipe_for(request.recipe, request.arch, stream)
        recipe = recipe.with_batch_size(request.batch_size).with_epochs(request.epochs)
        selected = _select(data, request, stream)
        require_disjoint(selected["train"], selected["test"])
        job = TrainingJob(
            arch=request.arch,
            stream=stream,
            recipe=recipe,
            data=data,
            flow=_flow(data, request),
            train=selected["train"],
            seed=request.seed,
            folder=work_dir / stream,
            start=load_init(
                request.init,
                arch=request.arch,
                stream=stream,
                num_classes=len(data.labels),
                cache=system.cache_dir(cache),
            ),
            finetune=request.finetune,
            num_workers=request.num_workers,
        )
        jobs.append(job)
        tests[stream] = _test(data, request, selected["test"], recipe.protocol)
    if not force:
        for job in jobs:
            found(job, resume=resume)
    if machine.is_main:
        write_json(work_dir / RUN, request.as_json())
    checkpoints = [train(job, machine, resume=resume, force=force) for job in jobs]
    return _rows(checkpoints, tests, work_dir, machine)


def evaluate_again(
    work_dir: Path, changes: Mapping[str, Any], machine: Machine, *, cache: Path | None = None
) -> tuple[list[Result], Path]:
    """Evaluate a finished run, as it was asked for but for `changes` to its request.

    Returns:
        One result a row, and the folder that holds them: `work_dir` itself, or where data, split or
        protocol differ from the run's a folder of their own in it, so that neither is overwritten.
    """
    asked = read_request(work_dir)
    request = Request.from_json(asked.as_json() | dict(changes))
    checkpoints = networks_of_run(work_dir, request.stream, cache=cache)
    return _evaluated(checkpoints, request, asked, work_dir, machine)


def evaluate_weights(
    request: Request, work_dir: Path, machine: Machine, *, cache: Path | None = None
) -> tuple[list[Result], Path]:
    """Evaluate the weights of `request.init` as they are: `as_given` is set.

    `work_dir` then is that of a run which has only been evaluated: `evaluate_again` takes it.

    Returns:
        As `evaluate_again`, of which this is the first time.
    """
    _refuse_other(request, work_dir)
    asked = read_request(work_dir) if (work_dir / RUN).exists() else None
    checkpoints = networks_of_weights(request.init, request.arch, request.stream, cache=cache)
    return _evaluated(checkpoints, request, asked, work_dir, machine)


def _evaluated(
    checkpoints: list[Checkpoint],
    request: Request,
    asked: Request | None,
    work_dir: Path,
    machine: Machine,
) -> tuple[list[Result], Path]:
    """The rows of `request`: the first in `work_dir`, or beside the ones it was `asked` for."""
    data = ShardFolder(request.data)
    request = _anywhere(request, data)
    tests = {}
    for checkpoint in checkpoints:
        selection = _select(data, request, checkpoint.stream, roles=("test",))["test"]
        protocol = checkpoint.recipe["protocol"]
        tests[checkpoint.stream] = _test(data, request, selection, protocol)
    deciding = ("data", "test_split", "protocol", "splits", "flow")
    told, own = ({n: r.as_json()[n] for n in deciding} for r in (request, asked or request))
    folder = work_dir if told == own else work_dir / f"{EVALUATION}{digest(told)[:8]}"
    rows = _rows(checkpoints, tests, folder, machine)
    # Last, so that weights or shards which are refused leave no run behind.
    if asked is None and machine.is_main:
        write_json(work_dir / RUN, request.as_json())
    return rows, folder


def _refuse_other(request: Request, work_dir: Path) -> None:
    """Raise EvaluationError where results of weights and of a training, or others, would mix."""
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
        protocol=lookup("protocol", request.protocol or protocol, PROTOCOLS),
        num_workers=request.num_workers,
    )


def _anywhere(request: Request, data: ShardFolder) -> Request:
    """The request with absolute paths for files of keys, so that `evaluate` finds them anywhere."""

    def absolute(split: str) -> str:
        is_file = split not in data.splits and Path(split).is_file()
        return str(Path(split).absolute()) if is_file else split

    return replace(
        request,
        train_split=request.train_split and absolute(request.train_split),
        test_split=absolute(request.test_split),
    )


def _flow(data: ShardFolder, request: Request) -> str:
    """Name of the flow that the request reads; empty where it reads none."""
    if "flow" not in ARCHS[request.arch].clips_of(request.stream):
        return ""
    if not data.flows:
        raise EvaluationError(
            f"{data.folder} holds no flow; make it with: extract-flow CLIPS {data.folder}"
            + (", or take --stream rgb alone" if "rgb" in ARCHS[request.arch].streams else "")
        )
    if request.flow is None and len(data.flows) > 1:
        raise EvaluationError(
            f"{data.folder} holds several flows ({', '.join(data.flows)}); choose with --flow NAME"
        )
    return lookup("flow", request.flow or data.flows[0], {flow: flow for flow in data.flows})


def _select(
    data: ShardFolder, request: Request, stream: str, roles: tuple[str, ...] = ("train", "test")
) -> dict[str, Selection]:
    names = {"train": request.train_split or "", "test": request.test_split}
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
    predictions = [
        Predictions.read(folder / result.stream / PREDICTIONS, result.failed) for result in results
    ]
    joint = add_streams(results[0], results[1], predictions)
    if machine.is_main:
        joint.write(folder / "joint", predictions[0] + predictions[1])
    return [*results, joint]
