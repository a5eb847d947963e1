"""The verb `evaluate`: a finished run again, or weights without training."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from kinetics_bench.commands.options import (
    DATA,
    PROG,
    RUNS,
    TEST_SPLIT,
    absolute_data,
    absolute_init,
    add_data,
    add_dump,
    add_machine,
    add_networks,
    add_scope,
    network_of,
    require_init,
    require_shards,
    scope_of,
    short_init,
)
from kinetics_bench.commands.work_dir import print_results
from kinetics_bench.training.lock import locked
from kinetics_tools.core.cli import Exit, Parser
from kinetics_tools.core.errors import KineticsError


def parser() -> Parser:
    """The options of the verb `evaluate`."""
    parser = Parser(
        f"{PROG} evaluate",
        "Evaluate a finished run again, also on other clips or with another protocol; or evaluate "
        "given weights with the paper's protocol.",
        "Options not given are taken from the run; with --init the defaults are --data shards "
        "--test-split val.",
    )
    add_networks(parser, "run", nargs="?", metavar="WORK_DIR", help="the --work-dir of a run")
    parser.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="results of --init (default: runs/ARCH-STREAM-WEIGHTS)\nlater it can be given as "
        "WORK_DIR",
    )
    add_data(parser, None, None)
    parser.add_argument(
        "--best",
        action="store_true",
        help="of a run: best.pt of each network, not the last checkpoint\nit is that of the epoch "
        "with the highest top-1 of the held-out clips (--eval-every)",
    )
    add_dump(parser)
    add_scope(parser)
    add_machine(parser)
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the rows."""
    require_init(arguments, "arch", "work_dir")
    if arguments.init:
        require_shards(arguments.data or DATA)
    from kinetics_bench.device import open_machine
    from kinetics_bench.inference.networks import Request, read_request
    from kinetics_bench.run import evaluate_again, evaluate_weights

    given = {
        "data": arguments.data and absolute_data(arguments.data),
        "test_split": arguments.test_split,
        "stream": arguments.stream,
        "protocol": arguments.protocol,
        "flow": arguments.flow,
        "splits": arguments.splits and arguments.splits.absolute(),
        "num_workers": arguments.workers,
        "cache_bytes": arguments.cache_bytes,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if arguments.best:
        if arguments.init:
            raise KineticsError("--best is for a run; give best.pt itself to --init")
        changes["best"] = True
    changes |= scope_of(arguments)
    work_dir, evaluate = arguments.run, partial(evaluate_again, arguments.run, changes)
    if arguments.init:
        arch, stream = network_of(arguments)
        request = Request(
            arch=arch,
            stream=stream,
            recipe="paper",
            data=absolute_data(DATA),
            train_split=None,
            test_split=TEST_SPLIT,
            init=absolute_init(arguments.init),
        )
        work_dir = arguments.work_dir or RUNS / "-".join((arch, stream, short_init(arguments.init)))
        evaluate = partial(evaluate_weights, replace(request, **changes), work_dir)
    else:
        read_request(work_dir)  # before a lock makes a folder where there is none
    with locked(work_dir), open_machine(arguments.device, arguments.amp) as machine:
        results, folder = evaluate(machine, cache=arguments.cache_dir)
        if not machine.is_main:
            return Exit.COMPLETE
        return print_results(results, folder, dump=arguments.dump)
