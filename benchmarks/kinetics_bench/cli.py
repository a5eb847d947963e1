"""`run-benchmark`: find the verb, parse, call."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from kinetics_bench.commands import (
    archs,
    attrition,
    compare,
    evaluate,
    fuse,
    inference,
    recipes,
    report,
    table,
    train,
    weights,
)
from kinetics_tools.core import cli
from kinetics_tools.core.errors import UnknownNameError, unknown_name


def main() -> NoReturn:
    """The console script."""
    argv = sys.argv[1:]
    again = "the same command"
    if cli.take_verb(argv, VERBS)[0] is None:
        again += " with --resume" + (" in place of --force" if "--force" in argv else "")
    cli.run(lambda: run(argv), again=again)


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv`; return the exit code.

    Raises:
        KineticsError: its first word is no verb, or what it asks for cannot be done.
    """
    verb, rest = cli.take_verb(list(argv), VERBS)
    if verb is None and rest and not rest[0].startswith("-"):  # without a verb there are options
        raise UnknownNameError(unknown_name("verb", rest[0], VERBS))
    parser, act = VERBS[verb] if verb else (train.parser, train.act)
    code: int = act(parser().parse_args(rest))
    return code


# Verb -> its parser, and what it does.
VERBS: Final[Mapping[str, tuple[Any, Any]]] = {
    "resume": (train.resume_parser, train.resume),
    "evaluate": (evaluate.parser, evaluate.act),
    "compare": (compare.parser, compare.act),
    "fuse": (fuse.parser, fuse.act),
    "attrition": (attrition.parser, attrition.act),
    "report": (report.parser, report.act),
    "table": (table.parser, table.act),
    "recipes": (recipes.parser, recipes.act),
    "archs": (archs.parser, archs.act),
    "predict": (inference.predict_parser, inference.predict),
    "features": (inference.features_parser, inference.features),
    "verify-weights": (weights.parser, weights.act),
}

if __name__ == "__main__":
    main()
