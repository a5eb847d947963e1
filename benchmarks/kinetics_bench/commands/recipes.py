"""The verb `recipes`, and the options that choose a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kinetics_bench.archs.registry import ARCHS, STREAMS
from kinetics_bench.commands.options import ARCH, PROG, known
from kinetics_bench.recipes import (
    LENGTH,
    RECIPES,
    RecipeChoice,
    as_toml,
    parse_override,
    read_recipe_file,
)
from kinetics_tools.core import console
from kinetics_tools.core.cli import Exit, Parser, one_of, positive
from kinetics_tools.core.errors import KineticsError, UnknownNameError, unknown_name


def parser() -> Parser:
    """The options of the verb `recipes`."""
    parser = Parser(
        f"{PROG} recipes",
        "List the recipes; or print one as TOML, which --recipe FILE.toml reads.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME|FILE.toml", help="the recipe to print")
    parser.add_argument(
        "--arch", default=ARCH, type=one_of("architecture", ARCHS), help=known(ARCHS)
    )
    parser.add_argument(
        "--stream", type=one_of("stream", STREAMS), help="default: the first network of --arch"
    )
    add_overrides(parser)
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Print the recipes, or one of them."""
    if arguments.name is None:
        rows = [
            {"recipe": name, "for": ", ".join(archs), "source": next(iter(first.values())).source}
            for name, archs in RECIPES.items()
            for first in [next(iter(archs.values()))]
        ]
        print(console.text_table(rows, left_aligned=("for", "source")))
        return Exit.COMPLETE
    arguments.recipe = arguments.name
    networks = ARCHS[arguments.arch].networks
    stream = arguments.stream or next(iter(networks))
    print(as_toml(choice_of(arguments).recipe(arguments.arch, stream)), end="")
    return Exit.COMPLETE


def add_overrides(parser: Parser) -> None:
    """Add the options that `choice_of` reads besides the recipe's name."""
    group = parser.add_argument_group(
        "overrides of the recipe", "each is part of its name and of its hash"
    )
    group.add_argument(
        "--batch-size", type=positive, metavar="N", help="clips per step, of all processes"
    )
    add_length(group)
    group.add_argument("--lr", type=float, metavar="RATE", help="the highest learning rate")
    group.add_argument(
        "--set",
        type=_override,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any field of the recipe, such as optimizer.lr=1e-4\nby its name in `run-benchmark "
        "recipes`",
    )
    group.add_argument(
        "--scale-lr",
        action="store_true",
        help="learning rate in proportion to --batch-size (linear scaling)",
    )


def add_length(parser: argparse._ActionsContainer) -> None:
    """Add the options for the length of a training, in either unit."""
    parser.add_argument(
        "--epochs", type=positive, metavar="N", help="length of recipes that count epochs"
    )
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="length of recipes that count steps\ntheir milestones move in proportion",
    )


def choice_of(arguments: argparse.Namespace) -> RecipeChoice:
    """The recipe that the options choose."""
    name, table = arguments.recipe, None
    if name not in RECIPES:
        if not name.endswith(".toml") and not Path(name).is_file():
            raise UnknownNameError(
                f"{unknown_name('recipe', name, RECIPES)} (or a FILE.toml that is there)"
            )
        path = Path(name).absolute()
        name, table = str(path), read_recipe_file(path)
    short = {
        "batch_size": arguments.batch_size,
        LENGTH["epochs"]: arguments.epochs,
        LENGTH["steps"]: arguments.steps,
        "optimizer.lr": arguments.lr,
    }
    overrides = {name: value for name, value in short.items() if value is not None}
    for field, value in arguments.set:
        if field in overrides:
            raise KineticsError(f"{field} is given twice; leave one of them out")
        overrides[field] = value
    return RecipeChoice(name=name, table=table, overrides=overrides, scale_lr=arguments.scale_lr)


def _override(text: str) -> tuple[str, Any]:
    try:
        return parse_override(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
