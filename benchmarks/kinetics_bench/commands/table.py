"""The verb `table`: a table of the paper, trained and evaluated."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kinetics_bench.archs.registry import ARCHS, STREAMS
from kinetics_bench.commands.options import (
    PROG,
    RUNS,
    absolute_data,
    add_machine,
    classes_named,
    folder_or_address,
    require_shards,
)
from kinetics_bench.commands.recipes import add_overrides, choice_of
from kinetics_bench.evaluation import paper
from kinetics_bench.tables.plan import (
    KINETICS,
    SETS,
    TABLES,
    Choices,
    DataSet,
    cells_of,
    plan_table,
)
from kinetics_tools.core import cli, console
from kinetics_tools.core.cli import Exit, Parser, comma_separated, one_of
from kinetics_tools.core.errors import KineticsError, lookup, unknown_name
from kinetics_tools.core.text import printable
from kinetics_tools.core.units import part_from

if TYPE_CHECKING:
    from kinetics_bench.device import Machine
    from kinetics_bench.tables.plan import TablePlan, Training
    from kinetics_bench.tables.run import Setting

OUT: Final = RUNS / "tables"
LEFT: Final = ("stream", "data", "init", "transfer", "state", "to be known")


def parser() -> Parser:
    """The options of the verb `table`."""
    parser = Parser(
        f"{PROG} table",
        "Train and evaluate what a table of the paper has, and print the paper's numbers beside "
        "ours. Run the same command again to continue: finished runs are kept, and tables share "
        "them.",
        "exit codes: 0 complete, but for cells whose data set is not given; 2 unusable input; 3 "
        "some cells cannot be run here; 4 a run failed and may succeed if you rerun; 130 "
        "interrupted; 143 terminated",
    )
    parser.add_argument(
        "number",
        type=one_of("table", map(str, TABLES)),
        metavar="1|2|3|4|5",
        help="the table; 1 trains nothing",
    )
    parser.add_argument(
        "--data",
        type=_sets,
        action="extend",
        default=[],
        metavar="NAME=DIR,...",
        help=f"shards of {', '.join(SETS)}\nfolders or addresses; cells of the others are not run",
    )
    parser.add_argument(
        "--splits", type=Path, metavar="DIR", help="folder of the official lists of the small sets"
    )
    for option, what, value in (
        ("--train-split", "another training split than the official one", "SPLIT"),
        ("--test-split", "another test split\nthen one, also in table 5", "SPLIT"),
        ("--classes", "only these classes of a data set", "A,B|FILE"),
    ):
        parser.add_argument(
            option,
            type=_named,
            action="append",
            default=[],
            metavar=f"NAME={value}",
            help=what,
        )
    parser.add_argument(
        "--archs", type=_some("architecture", ARCHS), metavar="A,B", help="only these architectures"
    )
    parser.add_argument(
        "--streams", type=_some("stream", STREAMS), metavar="A,B", help="only these streams"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE.toml",
        help="recipe of every training (default: paper, of the small sets their own, and fixed)",
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="folder of the tables and their runs"
    )
    parser.more.add_argument(
        "--flow", metavar="NAME", help="name of the flow (default: the only one in the shards)"
    )
    add_overrides(parser)
    parser.add_run(
        jobs="chains of trainings at once, each in a process\n(default: one after the other in "
        "this process). A chain is a training on Kinetics with all that starts from it, or a "
        "training that starts from none; it is what --task divides",
        made="training",
    )
    cli.add_cache_dir(parser.more)
    add_machine(parser, training=True)
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Train what is missing, write the table, and print it."""
    number = int(arguments.number)
    part = part_from(arguments.task, os.environ)
    if number == 1:
        return _sizes(arguments)
    choices = _choices(arguments, number)
    from kinetics_bench.device import open_machine
    from kinetics_bench.tables import page
    from kinetics_bench.tables.run import Setting, find_problems, run_chains, runnable

    plan = plan_table(number, choices)
    setting = Setting(
        choices=choices,
        out=arguments.out,
        splits=arguments.splits and arguments.splits.absolute(),
        flow=arguments.flow,
        num_workers=arguments.workers,
        device=arguments.device,
        amp=arguments.amp,
        cache=arguments.cache_dir,
        force=arguments.force,
    )
    mine = part.of(plan.chains)
    with open_machine(_device_here(arguments), arguments.amp) as machine:
        is_main = machine.is_main
        problems = find_problems(plan, setting, machine)
        if arguments.dry_run:
            return _dry_run(plan, mine, setting, machine, problems)
    todo = list(runnable(mine, problems))
    failed = run_chains(todo, setting, jobs=arguments.jobs, where=arguments.engine)
    names = {training.name for chain in mine for training in chain}
    outcomes = page.find_outcomes(plan, setting, problems, failed, names)
    if is_main:
        rows, reasons = page.table_rows(outcomes)
        notes = [*reasons, *page.data_notes(plan)]
        _write(number, rows, notes, page.as_csv(page.csv_rows(number, outcomes)), arguments.out)
    gaps = {outcome.gap for outcome in outcomes}
    if "failed" in gaps:
        return Exit.RETRYABLE_GAPS
    return Exit.PERMANENT_GAPS if "here" in gaps else Exit.COMPLETE


def _sizes(arguments: argparse.Namespace) -> int:
    """Table 1."""
    from kinetics_bench.tables import page

    archs = [name for name in paper.SIZES if arguments.archs is None or name in arguments.archs]
    rows = page.size_rows(archs)
    if arguments.dry_run:
        print(console.text_table(rows, left_aligned=list(rows[0])))
        return Exit.COMPLETE
    _write(1, rows, [], page.as_csv(rows), arguments.out, left=list(rows[0]))
    return Exit.COMPLETE


def _write(
    number: int,
    rows: list[dict[str, str]],
    notes: list[str],
    plain: str,
    out: Path,
    *,
    left: Iterable[str] = LEFT,
) -> None:
    """Write both files, and print the table with their paths."""
    from kinetics_bench.tables import page

    csv, html = page.write_table(number, rows, notes, plain, out)
    print(console.text_table(rows, left_aligned=list(left)))
    print(f"paper: {paper.SOURCE}", end="")
    print(f"; tested on: {paper.TESTED_ON[number]}" if number in paper.TESTED_ON else "")
    for note in notes:
        print(printable(note))
    print(f"csv: {csv}")
    print(f"page: {html}")


def _dry_run(
    plan: TablePlan,
    mine: Iterable[Iterable[Training]],
    setting: Setting,
    machine: Machine,
    problems: Mapping[tuple[str, str], str],
) -> int:
    """Print what would be trained, and how long that takes."""
    from kinetics_bench.tables import page
    from kinetics_bench.tables.run import forecast

    trainings = [training for chain in mine for training in chain]
    forecasts, more = forecast(trainings, setting, machine, problems)
    if machine.is_main:
        rows, reasons = page.forecast_rows(plan, forecasts, {**problems, **more})
        print(console.text_table(rows, left_aligned=LEFT))
        for reason in reasons:
            print(printable(reason))
        print(page.total_text(forecasts, machine.device.type))
    return Exit.COMPLETE


def _choices(arguments: argparse.Namespace, number: int) -> Choices:
    """What the options say of all trainings.

    Raises:
        KineticsError: they are not usable.
    """
    data = _once("--data", arguments.data)
    given = {
        name: _once(f"--{name.replace('_', '-')}", getattr(arguments, name))
        for name in ("train_split", "test_split", "classes")
    }
    for option, values in given.items():
        for name in values:
            if name not in data:
                raise KineticsError(
                    f"--{option.replace('_', '-')} {name}=... is for a data set that is not given; "
                    f"give its shards with --data {name}=DIR"
                )
    is_recipe_given = arguments.recipe is not None
    if not is_recipe_given:
        arguments.recipe = "paper"
    choices = Choices(
        sets={
            name: DataSet(
                data=absolute_data(where),
                train_split=given["train_split"].get(name),
                test_split=given["test_split"].get(name),
                classes=classes_named(given["classes"][name]) if name in given["classes"] else None,
            )
            for name, where in data.items()
        },
        recipe=choice_of(arguments),
        is_recipe_given=is_recipe_given,
        seed=arguments.seed,
        archs=arguments.archs,
        streams=arguments.streams,
    )
    _require_cells(number, choices)
    for name, where in data.items():
        require_shards(where, f"--data {name}=DIR")
    return _with_stored_test(choices)


def _require_cells(number: int, choices: Choices) -> None:
    """Raise KineticsError unless some cell is asked for, and the data of one is given."""
    every = cells_of(number, Choices(sets={}, recipe=choices.recipe))
    if not cells_of(number, choices):
        archs = ", ".join(dict.fromkeys(cell.arch for cell in every))
        raise KineticsError(f"table {number} has no such cell: it has streams of {archs}")
    plan = plan_table(number, choices)
    if not any(planned.trainings for planned in plan.cells):
        lacking = {name for planned in plan.cells for name in planned.lacking}
        wanted = ",".join(f"{name}=DIR" for name in SETS if name in lacking)
        raise KineticsError(f"no cell of table {number} can be run: give --data {wanted}")


def _with_stored_test(choices: Choices) -> Choices:
    """With the test split of Kinetics that its shards have."""
    from dataclasses import replace

    given = choices.sets.get(KINETICS)
    if given is None or given.test_split is not None:
        return choices
    from kinetics_bench.tables.run import stored_test

    found = replace(given, stored_test=stored_test(given.data))
    return replace(choices, sets={**choices.sets, KINETICS: found})


def _once(option: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The values by name, each given once."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise KineticsError(f"{option} {name}=... is given twice; leave one of them out")
        found[name] = value
    return found


def _device_here(arguments: argparse.Namespace) -> str:
    """The device that is planned with: under Ray, whose nodes may have others, any of this one."""
    if arguments.engine != "ray":
        return str(arguments.device)
    if arguments.device not in ("auto", "cpu", "cuda"):
        raise KineticsError(
            f"device {arguments.device!r}: Ray gives each task its GPU; with --engine ray choose "
            "auto, cpu or cuda"
        )
    return "auto"


def _named(text: str) -> tuple[str, str]:
    """A value NAME=VALUE, where NAME is a data set."""
    name, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not NAME=VALUE, such as ucf101=shards")
    try:
        return lookup("data set", name.strip(), dict.fromkeys(SETS, name.strip())), value.strip()
    except KineticsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _sets(text: str) -> list[tuple[str, Path | str]]:
    """The value of --data."""
    pairs = [_named(each) for each in text.split(",") if each.strip()]
    if not pairs:
        raise argparse.ArgumentTypeError("no data set is named there, such as ucf101=shards")
    return [(name, folder_or_address(value)) for name, value in pairs]


def _some(kind: str, known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: some of the `known` names, with commas between them."""
    names = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        found = comma_separated(text)
        wrong = next((name for name in found if name not in names), None)
        if wrong is not None:
            raise argparse.ArgumentTypeError(unknown_name(kind, wrong, names))
        if not found:
            raise argparse.ArgumentTypeError(f"no {kind} is named there")
        return found

    return parse
