"""The command without a verb: training and evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    add_start,
    known,
    require_shards,
    saving_of,
    short_init,
    stream_of,
)
from kinetics_bench.commands.work_dir import locked, print_results
from kinetics_bench.recipes import RECIPES
from kinetics_bench.weights.choices import INITS
from kinetics_tools.core import cli
from kinetics_tools.core.cli import Exit, Parser, one_of, positive


def parser() -> Parser:
    """The options of the command without a verb: training and evaluation."""
    parser = Parser(
        PROG,
        "Train and evaluate an architecture on shards that extract-flow wrote.",
        "verbs: run-benchmark evaluate | report | archs | predict | features | verify-weights "
        "(each has --help). "
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
        "--recipe", default="paper", type=one_of("recipe", RECIPES), help=known(RECIPES)
    )
    add_data(parser, DATA, TEST_SPLIT)
    parser.add_argument("--train-split", default="train", metavar="SPLIT", help="as --test-split")
    add_start(parser)
    parser.add_argument(
        "--batch-size", type=positive, help="clips per step, of all processes; overrides the recipe"
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="for a short test; overrides the recipes small and sample (paper counts steps)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        help="folder for checkpoints and results (default: runs/ARCH-STREAM-RECIPE)",
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
    add_machine(parser)
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Train, evaluate, and print the rows."""
    stream = stream_of(arguments.arch, arguments.stream)
    require_shards(arguments.data)
    from kinetics_bench.device import open_machine
    from kinetics_bench.inference.networks import Request
    from kinetics_bench.run import train_and_evaluate

    request = Request(
        arch=arguments.arch,
        stream=stream,
        recipe=arguments.recipe,
        data=absolute_data(arguments.data),
        train_split=arguments.train_split,
        test_split=arguments.test_split,
        flow=arguments.flow,
        protocol=arguments.protocol,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        splits=arguments.splits and arguments.splits.absolute(),
        seed=arguments.seed,
        num_workers=arguments.workers,
        init=absolute_init(arguments.init),
        finetune=arguments.finetune,
        cache_bytes=arguments.cache_bytes,
    )
    name = "-".join((arguments.arch, stream, arguments.recipe))
    work_dir = arguments.work_dir or RUNS / "+".join((name, *_overrides(arguments)))
    placed = open_machine(
        arguments.device, arguments.amp, activation_checkpointing=arguments.checkpoint_activations
    )
    with locked(work_dir), placed as machine:
        results = train_and_evaluate(
            request,
            work_dir,
            machine,
            before="resume" if arguments.resume else "force" if arguments.force else "keep",
            saving=saving_of(arguments),
            cache=arguments.cache_dir,
        )
        return print_results(results, work_dir) if machine.is_main else Exit.COMPLETE


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """Options that override the recipe, for the name of the folder."""
    words = [f"batch-{arguments.batch_size}"] if arguments.batch_size else []
    words += [f"epochs-{arguments.epochs}"] if arguments.epochs else []
    if arguments.init != INITS[0]:
        words.append(short_init(arguments.init))
    return words + (["last"] if arguments.finetune == "last" else [])
