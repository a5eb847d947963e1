"""A run: the networks of an architecture trained and evaluated, joined, and reported.

WORK_DIR/run.json                      what was asked for
         rgb/  flow/  joint/           checkpoint.pt, log.jsonl, tensorboard/ of each network,
         rgb/  flow/  joint/           and predictions.parquet, result.json of each row
         report.html
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.archs import ARCHS
from benchmarks.evaluate import Test, add_streams, evaluate
from benchmarks.machine import Machine
from benchmarks.protocols import PROTOCOLS
from benchmarks.recipes import recipe_for
from benchmarks.record import EVALUATION, PREDICTIONS, Predictions, Result
from benchmarks.splits import Selection, refuse_overlap, select
from benchmarks.train import CHECKPOINT, Checkpoint, Job, found, train
from benchmarks.weights.start import SCRATCH, start_from
from kinetics_tools import cli
from kinetics_tools.errors import EvaluationError, KineticsError, lookup
from kinetics_tools.files import digest, read_json, write_json
from kinetics_tools.shards import ShardFolder

RUN = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a run was asked for: the words of the command line.

    Attributes:
        stream: `rgb`, `flow` or `joint`.
        data: folder of shards.
        flow: name of the flow; None: the only one there is.
        protocol: None: the recipe's.
        batch_size: None: the recipe's.
        epochs: None: the recipe's.
        splits: folder of official lists.
        init: `scratch`, `imagenet`, `kinetics`, or the path of weights.
        finetune: `all`, or `last`: the last layer alone.
    """

    arch: str
    stream: str
    recipe: str
    data: Path
    train_split: str
    test_split: str
    flow: str | None = None
    protocol: str | None = None
    batch_size: int | None = None
    epochs: int | None = None
    splits: Path | None = None
    seed: int = 0
    num_workers: int | None = None
    init: str = SCRATCH
    finetune: str = "all"

    @property
    def streams(self) -> tuple[str, ...]:
        """The networks that are trained, by stream."""
        return ARCHS[self.arch].networks_of(self.stream)

    def as_json(self) -> dict[str, Any]:
        """The request as plain JSON values."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Request":
        """The request that `as_json` told."""
        paths = {name: Path(values[name]) for name in ("data", "splits") if values[name]}
        return cls(**{**values, **paths})


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
    data = ShardFolder(request.data)
    request = _anywhere(request, data)
    tests, jobs = {}, []
    for stream in request.streams:
        recipe = recipe_for(request.recipe, request.arch, stream)
        recipe = recipe.with_batch_size(request.batch_size).with_epochs(request.epochs)
        selected = _select(data, request, stream)
        refuse_overlap(selected["train"], selected["test"])
        job = Job(
            arch=request.arch,
            stream=stream,
            recipe=recipe,
            data=data,
            flow=_flow(data, request),
            train=selected["train"],
            seed=request.seed,
            folder=work_dir / stream,
            start=start_from(
                request.init,
                arch=request.arch,
                stream=stream,
                num_classes=len(data.labels),
                cache=cli.cache_dir(cache),
            ),
            finetune=request.finetune,
            num_workers=request.num_workers,
        )
        jobs.append(job)
        tests[stream] = Test(
            data=data,
            selection=selected["test"],
            protocol=lookup("protocol", request.protocol or recipe.protocol, PROTOCOLS),
            num_workers=request.num_workers,
        )
    if not force:
        for job in jobs:
            found(job, resume=resume)
    if machine.is_first:
        write_json(work_dir / RUN, request.as_json())
    checkpoints = [train(job, machine, resume=resume, force=force) for job in jobs]
    return _rows(checkpoints, tests, work_dir, machine)


def evaluate_again(
    work_dir: Path, changes: Mapping[str, Any], machine: Machine
) -> tuple[list[Result], Path]:
    """Evaluate a finished run, as it was asked for but for `changes` to its request.

    Returns:
        One result a row, and the folder that holds them: `work_dir` itself, or where data, split or
        protocol differ from the run's a folder of their own in it, so that neither is overwritten.
    """
    asked = read_request(work_dir)
    request = Request.from_json(asked.as_json() | dict(changes))
    checkpoints = read_checkpoints(work_dir, request.streams)
    data = ShardFolder(request.data)
    request = _anywhere(request, data)
    tests = {}
    for checkpoint in checkpoints:
        protocol = request.protocol or checkpoint.recipe["protocol"]
        tests[checkpoint.stream] = Test(
            data=data,
            selection=_select(data, request, checkpoint.stream, roles=("test",))["test"],
            protocol=lookup("protocol", protocol, PROTOCOLS),
            num_workers=request.num_workers,
        )
    deciding = ("data", "test_split", "protocol", "splits", "flow")
    told, own = ({name: r.as_json()[name] for name in deciding} for r in (request, asked))
    folder = work_dir if told == own else work_dir / f"{EVALUATION}{digest(told)[:8]}"
    return _rows(checkpoints, tests, folder, machine), folder


def read_request(work_dir: Path) -> Request:
    """What the run in `work_dir` was asked for.

    Raises:
        KineticsError: no run was started there.
    """
    if not (work_dir / RUN).exists():
        raise KineticsError(
            f"{work_dir} holds no run; train one there: "
            f"run-benchmark --arch i3d --work-dir {work_dir}"
        )
    try:
        return Request.from_json(read_json(work_dir / RUN))
    except (TypeError, KeyError) as error:
        raise KineticsError(f"{work_dir / RUN} is not of this version ({error})") from error


def read_checkpoints(work_dir: Path, streams: tuple[str, ...]) -> list[Checkpoint]:
    """The finished checkpoints of a run.

    Raises:
        EvaluationError: one is missing, damaged or unfinished.
    """
    checkpoints = [Checkpoint.read(work_dir / stream / CHECKPOINT) for stream in streams]
    for checkpoint in checkpoints:
        if not checkpoint.finished:
            raise EvaluationError(
                f"{work_dir / checkpoint.stream} stopped after {checkpoint.epoch} epochs; "
                "continue it with the training's command and --resume"
            )
    return checkpoints


def _anywhere(request: Request, data: ShardFolder) -> Request:
    """The request with absolute paths for files of keys, so that `evaluate` finds them anywhere."""

    def absolute(split: str) -> str:
        is_file = split not in data.splits and Path(split).is_file()
        return str(Path(split).absolute()) if is_file else split

    return replace(
        request,
        train_split=absolute(request.train_split),
        test_split=absolute(request.test_split),
    )


def _flow(data: ShardFolder, request: Request) -> str:
    """Name of the flow that the request reads; empty where it reads none."""
    if "flow" not in ARCHS[request.arch].clips_of(request.stream):
        return ""
    if not data.flows:
        raise EvaluationError(
            f"{data.folder} holds no flow; make it with: extract-flow CLIPS {data.folder}"
            + (", or train --stream rgb alone" if "rgb" in ARCHS[request.arch].streams else "")
        )
    if request.flow is None and len(data.flows) > 1:
        raise EvaluationError(
            f"{data.folder} holds several flows ({', '.join(data.flows)}); choose with --flow NAME"
        )
    return lookup("flow", request.flow or data.flows[0], {flow: flow for flow in data.flows})


def _select(
    data: ShardFolder, request: Request, stream: str, roles: tuple[str, ...] = ("train", "test")
) -> dict[str, Selection]:
    names = {"train": request.train_split, "test": request.test_split}
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
    if machine.is_first:
        joint.write(folder / "joint", predictions[0] + predictions[1])
    return [*results, joint]
