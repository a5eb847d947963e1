"""The command without a verb: training and evaluation."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_bench.archs.registry import ARCHS, STREAMS
from kinetics_bench.commands.options import (
    ARCH,
    DATA,
    PROG,
    RUNS,
    TEST_SPLIT,
    absolute_data,
    absolute_init,
    add_data,
    add_machine,
    add_saving,
    add_start,
    known,
    require_shards,
    short_init,
    stream_of,
)
from kinetics_bench.commands.work_dir import locked, print_mean, print_results
from kinetics_bench.recipes import (
    LENGTH,
    RECIPES,
    RecipeChoice,
    as_toml,
    parse_override,
    read_recipe_file,
)
from kinetics_bench.weights.choices import INITS
from kinetics_tools.core import cli, console
from kinetics_tools.core.cli import Exit, Parser, one_of, positive, whole
from kinetics_tools.core.errors import KineticsError, UnknownNameError, unknown_name

if TYPE_CHECKING:
    from kinetics_bench.inference.networks import Request
    from kinetics_bench.run import Before


def parser() -> Parser:
    """The options of the command without a verb: training and evaluation."""
    parser = Parser(
        PROG,
        "Train and evaluate an architecture on shards that extract-flow wrote.",
        "verbs: run-benchmark resume | evaluate | report | recipes | archs | predict | features | "
        "verify-weights (each has --help). "
        "Many processes: torchrun --no-python --nproc-per-node N run-benchmark ... "
        "exit codes: 0 complete; 2 unusable input, or a training that diverged or lost a process; "
        "130 interrupted; 143 terminated (--resume continues)",
    )
    parser.add_argument(
        "--arch", required=True, type=one_of("architecture", ARCHS), help=known(ARCHS)
    )
    added = ", ".join(
        name for name, arch in ARCHS.items() if "joint" in arch.streams and not arch.joint_training
    )
    parser.add_argument(
        "--stream",
        type=one_of("stream", STREAMS),
        help=f"rgb, flow, or joint. joint of {added}: both streams are trained separately (or "
        "reused) and their logits are added; for other architectures: one network that takes both "
        "streams (default: joint; rgb for architectures without flow)",
    )
    parser.add_argument(
        "--recipe",
        default="paper",
        metavar="NAME|FILE.toml",
        help=f"{known(RECIPES)}, or a file as `run-benchmark recipes NAME` prints it",
    )
    add_data(parser, DATA, TEST_SPLIT)
    parser.add_argument("--train-split", default="train", metavar="SPLIT", help="as --test-split")
    parser.add_argument(
        "--val-split",
        metavar="SPLIT",
        help="as --test-split: clips whose loss --eval-every and plateau schedules look at "
        "(default: those that the recipe holds out of the training split)",
    )
    parser.add_argument(
        "--eval-every",
        type=whole(0, 10_000),
        default=0,
        metavar="N",
        help="epochs between looks at the held-out clips; the checkpoint that is best there stays "
        "as best.pt",
    )
    add_start(parser)
    _add_overrides(parser)
    parser.add_argument(
        "--work-dir",
        type=Path,
        help="folder for checkpoints and results (default: runs/ARCH-STREAM-RECIPE); of several "
        "seeds WORK_DIR+seed-N",
    )
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="continue a training that stopped")
    there.add_argument("--force", action="store_true", help="retrain what is finished")
    add_saving(parser)
    cli.add_cache_dir(parser)
    parser.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="less memory for a third more operations: activations are computed again in the "
        "backward pass; the weights are the same",
    )
    add_machine(parser, training=True)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and its hours, and train nothing"
    )
    parser.add_common(seed=_seeds)
    return parser


def resume_parser() -> Parser:
    """The options of the verb `resume`."""
    parser = Parser(
        f"{PROG} resume",
        "Continue a training that stopped, with the options that it began with; or make a finished "
        "one longer.",
        "A longer training follows the schedule of its new length from the step that it is at; "
        "its checkpoint records this.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the --work-dir of a training")
    _add_length(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what is left and its hours, and train nothing"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    cli.add_cache_dir(parser)
    parser.add_common()
    return parser


def recipes_parser() -> Parser:
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
    _add_overrides(parser)
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Train, evaluate, and print the rows; of several seeds also their mean."""
    stream = stream_of(arguments.arch, arguments.stream)
    require_shards(arguments.data)
    from kinetics_bench.inference.networks import Request

    choice = _choice(arguments)
    request = Request(
        arch=arguments.arch,
        stream=stream,
        recipe=choice.name,
        recipe_file=choice.table,
        overrides=choice.overrides,
        scale_lr=choice.scale_lr,
        data=absolute_data(arguments.data),
        train_split=arguments.train_split,
        test_split=arguments.test_split,
        val_split=arguments.val_split,
        check_every=arguments.eval_every,
        flow=arguments.flow,
        protocol=arguments.protocol,
        splits=arguments.splits and arguments.splits.absolute(),
        num_workers=arguments.workers,
        init=absolute_init(arguments.init),
        finetune=arguments.finetune,
        cache_bytes=arguments.cache_bytes,
        amp=arguments.amp,
        checkpoint_every=arguments.checkpoint_every,
        keep_checkpoints=arguments.keep_checkpoints,
        checkpoint_activations=arguments.checkpoint_activations,
    )
    words = [] if arguments.init == INITS[0] else [short_init(arguments.init)]
    words += ["last"] if arguments.finetune == "last" else []
    name = "-".join((arguments.arch, stream, choice.title))
    folder = arguments.work_dir or RUNS / "+".join((name, *choice.words, *words))
    several = len(arguments.seed) > 1
    runs = {
        folder.with_name(f"{folder.name}+seed-{seed}") if several else folder: replace(
            request, seed=seed
        )
        for seed in arguments.seed
    }
    before: Before = "resume" if arguments.resume else "force" if arguments.force else "keep"
    return _run(runs, arguments, before=before)


def resume(arguments: argparse.Namespace) -> int:
    """Continue a training, as its run.json says."""
    from kinetics_bench.inference.networks import read_request

    request = read_request(arguments.run)
    if request.train_split is None:
        raise KineticsError(
            f"{arguments.run} is an evaluation of given weights, not a training: give "
            f"`{PROG} evaluate {arguments.run}`"
        )
    given = {name: getattr(arguments, name) for name in LENGTH}
    overrides = {LENGTH[name]: value for name, value in given.items() if value is not None}
    if overrides:
        request = replace(request, overrides={**request.overrides, **overrides})
    runs = {arguments.run: request}
    return _run(runs, arguments, before="resume", extend=bool(overrides))


def recipes(arguments: argparse.Namespace) -> int:
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
    print(as_toml(_choice(arguments).recipe(arguments.arch, stream)), end="")
    return Exit.COMPLETE


def _run(
    runs: Mapping[Path, Request],
    arguments: argparse.Namespace,
    *,
    before: Before,
    extend: bool = False,
) -> int:
    """Train and evaluate runs, one after the other, or print their plans."""
    from kinetics_bench.device import open_machine
    from kinetics_bench.run import plan_run, train_and_evaluate

    cache = arguments.cache_dir
    first = next(iter(runs.values()))
    placed = open_machine(
        arguments.device, first.amp, activation_checkpointing=first.checkpoint_activations
    )
    rows = {}
    with placed as machine:
        runs = {folder: replace(each, amp=machine.amp) for folder, each in runs.items()}
        if arguments.dry_run:
            plans = [
                plan.cells() | {"work-dir": str(folder)}
                for folder, request in runs.items()
                for plan in plan_run(request, folder, machine, cache=cache, extend=extend)
            ]
            if machine.is_main:
                print(console.text_table(plans, left_aligned=("recipe", "work-dir")))
            return Exit.COMPLETE
        for folder, request in runs.items():
            with locked(folder):
                rows[folder] = train_and_evaluate(
                    request, folder, machine, before=before, extend=extend, cache=cache
                )
                if machine.is_main:
                    print_results(rows[folder], folder)
        if machine.is_main and len(rows) > 1:
            print_mean(list(rows.values()))
    return Exit.COMPLETE


def _add_overrides(parser: Parser) -> None:
    """Add the options that `_choice` reads besides the recipe's name."""
    group = parser.add_argument_group(
        "overrides of the recipe", "each is part of its name and of its hash"
    )
    group.add_argument("--batch-size", type=positive, help="clips per step, of all processes")
    _add_length(group)
    group.add_argument("--lr", type=float, metavar="RATE", help="the highest learning rate")
    group.add_argument(
        "--set",
        type=_override,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any field, by its name in `run-benchmark recipes`, such as optimizer.lr=1e-4",
    )
    group.add_argument(
        "--scale-lr",
        action="store_true",
        help="learning rate in proportion to --batch-size (linear scaling)",
    )


def _add_length(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--epochs", type=positive, metavar="N", help="length of recipes that count epochs"
    )
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="length of recipes that count steps; their milestones move in proportion",
    )


def _choice(arguments: argparse.Namespace) -> RecipeChoice:
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


def _seeds(text: str) -> tuple[int, ...]:
    """The value of --seed: one whole number, or several with commas."""
    numbers = [number.strip() for number in text.split(",")]
    if not all(re.fullmatch(r"-?[0-9]{1,18}", number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number, or several as 0,1,2")
    return tuple(dict.fromkeys(map(int, numbers)))
