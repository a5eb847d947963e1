"""The commands that repeat a run, for its page: lines that can be pasted."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kinetics_bench.commands.options import PROG
from kinetics_bench.recipes import LENGTH, override_text
from kinetics_bench.recipes.recipe import EXTENDED
from kinetics_tools.core.errors import KineticsError

if TYPE_CHECKING:
    from kinetics_bench.evaluation.page_tables import Asked
    from kinetics_bench.evaluation.results import Fusion
    from kinetics_bench.inference.networks import Request
    from kinetics_bench.training.checkpoint import Checkpoint, Extension

# Other names than those of Request's fields.
OPTIONS: Final = {"num_workers": "workers", "check_every": "eval-every", "overrides": "set"}
# What `evaluate` takes: of a run, what may differ from it, and of weights.
AGAIN: Final = (
    *("data", "test_split", "splits", "flow", "protocol", "best"),
    *("classes", "min_coverage", "allow_overlap", "pretrained_on"),
)
GIVEN: Final = ("arch", "stream", "init", *AGAIN)


def asked_of(folder: Path) -> Asked | None:
    """What a page says of the run, the other evaluation, or the fused row in a folder.

    None: it is not known what it was asked for.
    """
    from kinetics_bench.evaluation.page_tables import Asked
    from kinetics_bench.evaluation.results import RESULT, Result, run_of
    from kinetics_bench.inference.networks import RUN, read_request

    if (folder / RESULT).exists():
        fused = Result.read(folder).fused
        again = () if fused is None else (_fuse(fused, folder),)
        return Asked(commands=again, seed=None, init="", finetune="")
    run = run_of(folder)
    try:
        request = read_request(run)
        other = read_request(folder) if folder != run and (folder / RUN).exists() else None
        commands = _commands(request, run)
    except KineticsError:  # a page does not need it
        return None
    if other is not None:
        commands.append(shlex.join([PROG, "evaluate", str(run), *_again(other, request)]))
    return Asked(
        commands=tuple(commands),
        seed=None if request.as_given else request.seed,
        init=request.init,
        finetune=request.finetune,
    )


def _commands(request: Request, run: Path) -> list[str]:
    """The command of a run, and of a training that was made longer those that did it, in order."""
    longer = _made_longer(request, run)
    if not longer:
        return [_command(request, run)]
    return [_command(_before(request, longer), run), *_resumes(request, run, longer)]


def _made_longer(request: Request, run: Path) -> list[Checkpoint]:
    """The networks of a run whose trainings were made longer, as far as it can be read."""
    from kinetics_bench.evaluation.results import Result
    from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint

    found = []
    for stream in request.streams:
        with suppress(KineticsError):
            # A result is small, and says whether the checkpoint is worth reading.
            training = Result.read(run / stream).training
            if any(EXTENDED in recipe.name for recipe in training.values()):
                found.append(Checkpoint.read(run / stream / CHECKPOINT))
    return [each for each in found if each.extended]


def _before(request: Request, longer: Sequence[Checkpoint]) -> Request:
    """What a run was asked for before its trainings were made longer."""
    first = {each.stream: each.extended[0].recipe.schedule for each in longer}
    length = next(iter(first.values()))
    unasked = {n: each for n, each in request.overrides.items() if n not in LENGTH.values()}
    before = replace(request, overrides=unasked)
    recipe = before.choice.recipe
    if all(recipe(request.arch, stream).schedule == each for stream, each in first.items()):
        return before
    return replace(request, overrides={**request.overrides, LENGTH[length.unit]: length.length})


def _resumes(request: Request, run: Path, longer: Sequence[Checkpoint]) -> Iterator[str]:
    """The commands that made trainings longer, with what is to be known of them as a comment."""
    resumed: dict[tuple[str, int], dict[str, Extension]] = defaultdict(dict)
    for each in longer:
        recipes = [*(extension.recipe for extension in each.extended[1:]), each.recipe]
        for extension, recipe in zip(each.extended, recipes, strict=True):
            to = (recipe.schedule.unit, recipe.schedule.length)
            resumed[to][each.stream] = extension
    for (unit, length), extensions in sorted(resumed.items()):
        remarks = [
            f"{stream} went on from step {each.step}, before its end"
            for stream, each in extensions.items()
            if not each.had_ended
        ]
        if len(extensions) < len(request.streams):
            remarks.append(f"this was of {', '.join(extensions)} only")
        command = shlex.join([PROG, "resume", str(run), f"--{unit}", str(length)])
        yield "; ".join([f"{command}  # {remarks[0]}", *remarks[1:]]) if remarks else command


def _command(request: Request, run: Path) -> str:
    """The command that trains, or that evaluates given weights."""
    words = [PROG, "evaluate"] if request.as_given else [PROG]
    # What a recipe's file held is in the file that `recipe` names.
    fields_given = [name for name in request.as_json() if name != "recipe_file"]
    names = [name for name in fields_given if name in GIVEN or not request.as_given]
    return shlex.join([*words, *_options(request, names), "--work-dir", str(run)])


def _fuse(fused: Fusion, folder: Path) -> str:
    """The command that adds predictions."""
    weights = ",".join(f"{part.weight:.17g}" for part in fused.parts)
    names = [part.name for part in fused.parts]
    options = ["--weights", weights, "--of", fused.of, "--out", str(folder)]
    return shlex.join([PROG, "fuse", *names, *options])


def _again(other: Request, request: Request) -> list[str]:
    """The options of `evaluate` by which another evaluation differs from its run."""
    there = request.as_json()
    return _options(other, [name for name in AGAIN if other.as_json()[name] != there[name]])


def _options(request: Request, names: Sequence[str]) -> list[str]:
    """The options for fields of a request, without those that have their default."""
    default = replace(request, **{name: _default(name) for name in names}).as_json()
    words: list[str] = []
    for name, value in request.as_json().items():
        option = f"--{OPTIONS.get(name, name).replace('_', '-')}"
        if name not in names or value in (None, default[name]):
            continue
        if isinstance(value, Mapping):
            words += [f"{option}={override_text(*each)}" for each in value.items()]
        elif value is True:
            words.append(option)
        elif name == "classes":
            words += [option, ",".join(value)]
        elif isinstance(value, list | tuple):
            words += [f"{option}={each}" for each in value]
        else:
            words += [option, str(value)]
    return words


def _default(name: str) -> Any:
    """Of a field of a request; of those that are always asked for, nothing."""
    from kinetics_bench.inference.networks import Request

    field = next(each for each in fields(Request) if each.name == name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default
