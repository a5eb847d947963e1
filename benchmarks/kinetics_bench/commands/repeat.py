"""The command that repeats a run, for its page: a line that can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kinetics_bench.commands.options import PROG
from kinetics_bench.recipes import override_text
from kinetics_tools.core.errors import KineticsError

if TYPE_CHECKING:
    from kinetics_bench.evaluation.page_tables import Asked
    from kinetics_bench.evaluation.results import Fusion
    from kinetics_bench.inference.networks import Request

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
    except KineticsError:  # a page does not need it
        return None
    commands = [_command(request, run)]
    if other is not None:
        commands.append(shlex.join([PROG, "evaluate", str(run), *_again(other, request)]))
    return Asked(
        commands=tuple(commands),
        seed=None if request.as_given else request.seed,
        init=request.init,
        finetune=request.finetune,
    )


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
