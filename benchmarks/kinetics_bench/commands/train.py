"""The command without a verb: training and evaluation."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_bench.archs.registry import ARCHS, STREAMS
from kinetics_bench.commands.options import (
    DATA,
    PROG,
    RUNS,
    TEST_SPLIT,
    absolute_data,
    absolute_init,
    add_data,
    add_machine,
    add_saving,
    add_scope,
    add_start,
    known,
    require_shards,
    scope_of,
    short_init,
    stream_of,
)
from kinetics_bench.commands.recipes import add_length, add_overrides, choice_of
from kinetics_bench.commands.work_dir import print_means, print_results
from kinetics_bench.recipes import (
    LENGTH,
    RECIPES,
)
from kinetics_bench.training.lock import locked
from kinetics_bench.weights.choices import INITS
from kinetics_tools.core import cli, console
from kinetics_tools.core.cli import Exit, Parser, one_of, whole
from kinetics_tools.core.errors import KineticsError

if TYPE_CHECKING:
    from kinetics_bench.inference.networks import Request
    from kinetics_bench.run import Before, Planned

logger = logging.getLogger(__name__)


def parser() -> Parser:
    """The options of the command without a verb: training and evaluation."""
    parser = Parser(
        PROG,
        "Train and evaluate an architecture on shards that extract-flow wrote.",
        "verbs: run-benchmark resume | evaluate | compare | fuse | attrition | report | table | "
        "recipes | archs | predict | features | verify-weights (each has --help). "
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
        help="rgb, flow or joint (default: joint; rgb if there is no flow)\n"
        f"joint of {added}: both streams are trained separately (or reused) and their logits are "
        "added; of other architectures: one network that takes both streams",
    )
    parser.add_argument(
        "--recipe",
        default="paper",
        metavar="NAME|FILE.toml",
        help=f"{', '.join(RECIPES)}, or a file\nas `run-benchmark recipes NAME` prints it",
    )
    add_data(parser, DATA, TEST_SPLIT)
    parser.add_argument("--train-split", default="train", metavar="SPLIT", help="as --test-split")
    add_scope(parser)
    parser.add_argument(
        "--val-split",
        metavar="SPLIT",
        help="held-out clips (default: the recipe's share of --train-split)\nas --test-split: "
        "clips whose loss --eval-every and plateau schedules look at",
    )
    parser.add_argument(
        "--eval-every",
        type=whole(0, 10_000),
        default=0,
        metavar="N",
        help="look at the held-out clips every N epochs\nthe checkpoint that is best there stays "
        "as best.pt",
    )
    add_start(parser)
    add_overrides(parser)
    parser.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: runs/ARCH-STREAM-RECIPE)\nof several seeds DIR+seed-N",
    )
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="continue a training that stopped")
    there.add_argument("--force", action="store_true", help="retrain what is finished")
    add_saving(parser)
    cli.add_cache_dir(parser.more)
    parser.more.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="less memory for a third more operations: activations are computed again in the "
        "backward pass; the weights are the same",
    )
    parser.more.add_argument(
        "--sync-bn",
        action="store_true",
        help="batch norm over the clips of all processes: the mean and variance in training are "
        "those of the micro-batches of all of them together",
    )
    parser.more.add_argument(
        "--compile",
        action="store_true",
        help="compile the forward and backward pass (torch.compile): the first step takes a minute "
        "or more, the others may be faster; evaluation is not compiled. A CPU needs a C++ "
        "compiler (g++), a GPU Triton",
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
    add_length(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what is left and its hours, and train nothing"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    cli.add_cache_dir(parser.more)
    parser.add_common()
    parser.set_defaults(seed=None)  # that of the run
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Train, evaluate, and print the rows; of several seeds also their mean."""
    stream = stream_of(arguments.arch, arguments.stream)
    require_shards(arguments.data)
    from kinetics_bench.inference.networks import Request

    choice = choice_of(arguments)
    for network in ARCHS[arguments.arch].networks_of(stream):  # before there is any folder
        choice.recipe(arguments.arch, network)
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
        sync_bn=arguments.sync_bn,
        compile=arguments.compile,
        **scope_of(arguments),
    )
    words = [] if arguments.init == INITS[0] else [short_init(arguments.init)]
    words += ["last"] if arguments.finetune == "last" else []
    words += filter(None, [request.classes_name])
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
    from kinetics_bench.evaluation.results import run_of
    from kinetics_bench.inference.networks import RUN, read_request

    run = run_of(arguments.run)
    if run != arguments.run and (run / RUN).exists():
        raise KineticsError(f"{arguments.run} is an evaluation of the run {run}; give {run}")
    request = read_request(arguments.run)
    if request.train_split is None:
        raise KineticsError(
            f"{arguments.run} is an evaluation of given weights, not a training: give "
            f"`{PROG} evaluate {arguments.run}`"
        )
    if arguments.seed not in (None, request.seed):
        raise KineticsError(
            f"{arguments.run} was begun with --seed {request.seed} and goes on with it: leave out "
            f"--seed, or train another run with --seed {arguments.seed}"
        )
    given = {name: getattr(arguments, name) for name in LENGTH}
    overrides = {LENGTH[name]: value for name, value in given.items() if value is not None}
    if overrides:
        request = replace(request, overrides={**request.overrides, **overrides})
    runs = {arguments.run: request}
    # Also without a length: the run may have been made longer and stopped before its first step.
    return _run(runs, arguments, before="resume", extend=True)


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
        arguments.device,
        first.amp,
        activation_checkpointing=first.checkpoint_activations,
        sync_batch_norm=first.sync_bn,
        compiled=first.compile,
    )
    with placed as machine:
        if first.sync_bn and machine.num_processes == 1:
            logger.info("--sync-bn changes nothing: this is one process")
        runs = {folder: replace(each, amp=machine.amp) for folder, each in runs.items()}
        if arguments.dry_run:
            planned: Planned = "extend" if extend else "force" if before == "force" else "resume"
            plans = [
                plan.cells() | {"work-dir": str(folder)}
                for folder, request in runs.items()
                for plan in plan_run(request, folder, machine, cache=cache, before=planned)
            ]
            if machine.is_main:
                print(console.text_table(plans, left_aligned=("recipe", "work-dir")))
            return Exit.COMPLETE
        for folder, request in runs.items():
            with locked(folder):
                results = train_and_evaluate(
                    request, folder, machine, before=before, extend=extend, cache=cache
                )
                if machine.is_main:
                    print_results(results, folder)
        if machine.is_main and len(runs) > 1:
            print_means(list(runs))
    return Exit.COMPLETE


def _seeds(text: str) -> tuple[int, ...]:
    """The value of --seed: one whole number, or several with commas."""
    numbers = [number.strip() for number in text.split(",")]
    if not all(re.fullmatch(r"-?[0-9]{1,18}", number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number, or several as 0,1,2")
    seeds = tuple(map(int, numbers))
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise argparse.ArgumentTypeError(f"seed {twice} is given twice; leave one of them out")
    return seeds
