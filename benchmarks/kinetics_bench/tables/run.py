"""The trainings of a table: which can be run here, how long they take, and their runs.

OUT/runs/NAME/    an ordinary run for each Training: `run-benchmark resume`, `evaluate` and `report`
                  take it
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch

from kinetics_bench.archs.registry import ARCHS, STREAMS
from kinetics_bench.device import Machine, open_machine
from kinetics_bench.evaluation.groups import OFFICIAL
from kinetics_bench.evaluation.results import RESULT, Result
from kinetics_bench.inference.networks import Request, read_request
from kinetics_bench.run import check_run, plan_run, train_and_evaluate
from kinetics_bench.tables.plan import FIXED, Choices, TablePlan, Training
from kinetics_bench.training.estimate import TrainingPlan
from kinetics_bench.training.lock import locked
from kinetics_bench.weights.init import SCRATCH, load_init
from kinetics_tools.core import console, engine, system
from kinetics_tools.core.errors import KineticsError
from kinetics_tools.core.units import Crash, WorkerResources
from kinetics_tools.shards.reader import ShardFolder

RUNS: Final = "runs"
Chain = tuple[Training, ...]
Network = tuple[str, str]  # name of a training, and the stream of one of its networks
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how the trainings of a table are run.

    Attributes:
        choices: what they train.
        out: folder of the tables and runs.
        splits: folder with the official lists of UCF-101 and HMDB-51.
        flow: name of the flow; None: the only one in the shards.
        num_workers: as in a Request.
        device, amp: as `open_machine` takes them.
        cache: folder for downloaded weights; None: the user's cache.
        force: train all again.
    """

    choices: Choices
    out: Path
    splits: Path | None = None
    flow: str | None = None
    num_workers: int | None = None
    device: str = "auto"
    amp: Literal["auto", "none", "bfloat16", "float16"] = "auto"
    cache: Path | None = None
    force: bool = False

    def folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.out / RUNS / name

    def has_row(self, name: str, stream: str) -> bool:
        """Whether a run has the result of a stream: then that network is finished."""
        return (self.folder(name) / stream / RESULT).exists()


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a training of one network will take.

    Attributes:
        plan: clips, steps, and what a measurement says.
        is_timed: whether that could be measured.
    """

    plan: TrainingPlan
    is_timed: bool

    @property
    def hours(self) -> float | None:
        """That it takes from here; None: not known."""
        return self.plan.seconds / 3600 if self.is_timed else None


def stored_test(data: str) -> str:
    """The test split of Kinetics in shards: `test`, as in the paper, if it is there with labels."""
    shards = ShardFolder(data)
    if "test" in shards.splits:
        samples = shards.samples("test", ("rgb",))
        if samples and all(sample.label_id is not None for sample in samples):
            return "test"
    return "val"


def find_problems(plan: TablePlan, setting: Setting, machine: Machine) -> dict[Network, str]:
    """Why networks cannot be trained here, such as weights, flow or lists that are not there."""
    found: dict[Network, str] = {}
    weights: dict[str, str] = {}  # initial weights -> why they cannot be had
    for training in plan.trainings.values():
        for network in training.networks:
            at, before = (training.name, network), (training.parent, network)
            why = "" if _is_ready(training, network, setting) else found.get(before, "")
            if not why and not training.parent:
                why = _lacking_weights(training, network, setting, weights)
            if not why:
                request = _rehearsed(training, network, setting)
                try:
                    check_run(request, setting.folder(training.name), machine, cache=setting.cache)
                except KineticsError as error:
                    why = _said(error)
            if why:
                found[at] = why
    return found


def forecast(
    trainings: Iterable[Training],
    setting: Setting,
    machine: Machine,
    problems: Mapping[Network, str],
) -> tuple[dict[Network, Forecast], dict[Network, str]]:
    """What the trainings take that have no problem, and more problems; nothing is written."""
    found: dict[Network, Forecast] = {}
    more: dict[Network, str] = {}
    rates: dict[Any, float] = {}  # clips per second of what takes as long
    for training in trainings:
        for network in training.networks:
            at = (training.name, network)
            if at in problems:
                continue
            is_there = _is_ready(training, network, setting)
            request = replace(_request(training, setting), stream=network)
            if not is_there:
                request = _rehearsed(training, network, setting)
            folder = setting.folder(training.name)
            recipe = training.recipe.recipe(training.arch, network)
            alike = (training.arch, network, training.data, training.transfer == FIXED)
            rate = None if recipe.fixed_features else rates.get(alike)
            try:
                (ahead,) = plan_run(
                    request,
                    folder,
                    machine,
                    cache=setting.cache,
                    before="force" if setting.force else "resume",
                    clips_per_second=rate,
                )
            except KineticsError as error:
                more[at] = _said(error)
            else:
                if ahead.clips_per_second:
                    rates[alike] = ahead.clips_per_second
                # Features of weights that are not there yet cannot be timed.
                found[at] = Forecast(ahead, is_timed=is_there or training.transfer != FIXED)
    return found, more


def runnable(chains: Iterable[Chain], problems: Mapping[Network, str]) -> Iterator[Chain]:
    """The chains without what has problems, each row by itself."""
    for chain in chains:
        left = tuple(each for training in chain for each in _without(training, problems))
        if left:
            yield left


def _without(training: Training, problems: Mapping[Network, str]) -> Iterator[Training]:
    """A training with the rows of which no network has a problem, if there are any."""
    networks_of = ARCHS[training.arch].networks_of
    streams = tuple(
        stream
        for stream in training.streams
        if not any((training.name, each) in problems for each in networks_of(stream))
    )
    if streams:
        yield replace(training, streams=streams)


def run_chains(
    chains: Sequence[Chain], setting: Setting, *, jobs: int | None, where: str
) -> dict[Network, str]:
    """Run chains of trainings; return why some networks failed.

    Args:
        chains: what to run.
        setting: how.
        jobs: chains at once; None: one after the other in this process, under Ray as many as there
            is room for.
        where: a name in ENGINES.
    """
    failed: dict[Network, str] = {}
    if not chains:
        return failed
    devices: Sequence[str] = ()
    if where != "local":
        devices = (setting.device,)
    elif jobs is None:
        jobs = 0
    else:
        devices, jobs = _devices(setting.device, min(jobs, len(chains))), system.num_processors()
    work = partial(run_chain, setting=setting)
    results: Iterable[tuple[Chain, dict[Network, str] | Crash]]
    results = engine.run(chains, work, jobs=jobs, engine=where, devices=devices)
    if jobs != 0:  # else each training shows its own progress
        results = console.progress(results, total=len(chains), what="chains of trainings")
    for chain, result in results:
        if isinstance(result, Crash):
            for training in chain:
                lost = [each for each in training.networks if not _has(training, each, setting)]
                failed |= {(training.name, each): result.detail for each in lost}
        else:
            failed |= result
            if jobs != 0:
                logger.info("done: %s", ", ".join(training.name for training in chain))
    return failed


def run_chain(
    chain: Chain, *, setting: Setting, resources: WorkerResources | None = None
) -> dict[Network, str]:
    """Train and evaluate, one after the other; return why some networks failed.

    What starts from the weights of one that failed fails for the same reason.
    """
    failed: dict[Network, str] = {}
    device = setting.device
    if resources is not None:
        device = resources.device
        torch.set_num_threads(min(resources.threads, torch.get_num_threads()))
    with open_machine(device, setting.amp) as machine:
        for training in chain:
            for each in training.networks:
                if (training.parent, each) in failed:
                    failed[training.name, each] = failed[training.parent, each]
            for left in _without(training, failed):
                failed |= _run(left, setting, machine)
    for (name, network), why in failed.items():
        logger.warning("%s, %s failed: %s", name, network, why)
    return failed


def _run(training: Training, setting: Setting, machine: Machine) -> dict[Network, str]:
    """Train and evaluate; return why networks failed."""
    request = replace(_request(training, setting), amp=machine.amp)
    if machine.is_main:
        logger.info("%s: %s", training.name, ", ".join(training.networks))
    why = _tried(request, training, setting, machine, force=setting.force)
    if not why:
        return {}
    if len(training.networks) == 1:
        return {(training.name, training.networks[0]): why}
    # One of the networks failed: the others are evaluated without it.
    whys = {
        (training.name, each): _tried(
            replace(request, stream=each), training, setting, machine, force=False
        )
        for each in training.networks
    }
    failed = {at: said for at, said in whys.items() if said}
    return failed or dict.fromkeys(whys, why)


def _tried(
    request: Request, training: Training, setting: Setting, machine: Machine, *, force: bool
) -> str:
    """Train and evaluate; return why that failed, or nothing."""
    folder = setting.folder(training.name)
    before: Literal["force", "resume"] = "force" if force else "resume"
    try:
        with locked(folder):
            train_and_evaluate(request, folder, machine, before=before, cache=setting.cache)
    except KineticsError as error:
        return _said(error)
    return ""


def _has(training: Training, network: str, setting: Setting) -> bool:
    return setting.has_row(training.name, network)


def _is_ready(training: Training, network: str, setting: Setting) -> bool:
    """Whether there is nothing to start from, or it is there already."""
    return not training.parent or setting.has_row(training.parent, network)


def _lacking_weights(
    training: Training, network: str, setting: Setting, known: dict[str, str]
) -> str:
    """Why the initial weights cannot be had; empty if they can. It is asked once for all."""
    if training.init == SCRATCH:
        return ""
    if training.init not in known:
        cache = system.cache_dir(setting.cache)
        try:
            load_init(training.init, arch=training.arch, stream=network, num_classes=2, cache=cache)
            known[training.init] = ""
        except KineticsError as error:
            advice = f"copy it to {cache / 'weights'}"  # there is no --init here
            said = str(error).replace("give --init PATH", advice)
            known[training.init] = f"{training.init} weights: {said}"
    return known[training.init]


def _request(training: Training, setting: Setting) -> Request:
    """What a run is asked for; a run that has rows of other streams keeps them."""
    rows = {*training.streams, *(s for s in STREAMS if setting.has_row(training.name, s))}
    init = training.init
    if training.parent:
        init = str(setting.folder(training.parent).absolute())
    return Request(
        arch=training.arch,
        stream="joint" if len(rows) > 1 else next(iter(rows)),
        recipe=training.recipe.name,
        recipe_file=training.recipe.table,
        overrides=training.recipe.overrides,
        scale_lr=training.recipe.scale_lr,
        data=setting.choices.sets[training.data].data,
        train_split=training.train_split,
        test_split=training.test_split,
        flow=setting.flow,
        splits=setting.splits,
        seed=setting.choices.seed,
        num_workers=setting.num_workers,
        init=init,
        finetune="last" if training.transfer == FIXED else "all",
        classes=training.classes,
    )


def other_request(training: Training, stream: str, setting: Setting) -> str:
    """How the request of a run that has a row differs from that of the table; empty: it does not.

    The name of its folder says the rest: architecture, initial weights, seed and classes.

    Raises:
        KineticsError: the run or the row cannot be read.
    """
    folder = setting.folder(training.name)
    there, here = read_request(folder), _request(training, setting)
    result = Result.read(folder / stream)
    pairs = {
        "data": (there.data, here.data),
        "train split": (there.train_split, _as_stored(training.train_split, there.train_split)),
        "test split": (there.test_split, _as_stored(training.test_split, there.test_split)),
    }
    if any(map(OFFICIAL.fullmatch, (training.train_split, training.test_split))):
        pairs["folder of lists"] = (str(there.splits), str(here.splits))
    if result.data.flow and setting.flow:
        pairs["flow"] = (result.data.flow, setting.flow)
    for network, recipe in result.training.items():
        now = training.recipe.recipe(training.arch, network)
        if recipe.hash != now.hash:
            pairs[f"recipe of {network}"] = (f"{recipe.name} {recipe.hash[:8]}", now.hash[:8])
    return ", ".join(f"{what} {a} there, {b} now" for what, (a, b) in pairs.items() if a != b)


def _as_stored(split: str, stored: str | None) -> str:
    """A split as a request stores it: a file of keys by its absolute path."""
    path = str(Path(split).absolute())
    return path if stored == path else split


def _rehearsed(training: Training, network: str, setting: Setting) -> Request:
    """The request for one network; random weights stand for those that are not there yet."""
    request = replace(_request(training, setting), stream=network)
    if not training.parent:
        return request
    if request.recipe == FIXED:
        # The recipe of all layers has the same clips and steps.
        request = replace(request, recipe=training.data)
    return replace(request, init=SCRATCH, finetune="all")


def _devices(device: str, jobs: int) -> list[str]:
    """The device of each of so many processes, in turn those that are there."""
    num_gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return [f"cuda:{at % num_gpus}" if num_gpus else device for at in range(jobs)]


def _said(error: KineticsError) -> str:
    """An error in the words of this command."""
    return error.lines[0].replace("--work-dir", "--out")
