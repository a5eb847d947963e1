"""What a table says: the paper's numbers beside ours, as text, CSV and HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

from kinetics_bench.archs.registry import ARCHS, Sampling, build
from kinetics_bench.evaluation import paper
from kinetics_bench.evaluation.comparable import is_comparable
from kinetics_bench.evaluation.groups import OFFICIAL
from kinetics_bench.evaluation.results import Result, scope_notes
from kinetics_bench.evaluation.rows import read_row
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.recipes import recipe_for
from kinetics_bench.tables.plan import PlannedCell, TablePlan, Training, set_of
from kinetics_bench.tables.run import Forecast, Network, Setting, other_request
from kinetics_tools.core.errors import KineticsError
from kinetics_tools.core.files import write_text
from kinetics_tools.core.html import render

TEMPLATE: Final = Path(__file__).with_name("paper_table.html.jinja")
NOT_RUN: Final = "not run"
NOT_CONFIRMED: Final = "not confirmed"
TITLES: Final[Mapping[int, str]] = {
    1: "parameters and temporal inputs",
    2: "training and testing on one data set",
    3: "Kinetics with and without ImageNet",
    4: "transfer from Kinetics",
    5: "Two-Stream I3D after Kinetics, mean of three splits",
}
Cells = dict[str, str]
# Why a cell has no number: its data is not given, it cannot be run here, its run failed, or it is
# of another part of the job.
Gap = Literal["", "data", "here", "failed", "part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A cell with our number, or with the reason why there is none.

    Attributes:
        planned: the cell.
        results: one for each split; none: there is no number.
        gap: why not, in a word.
        reason: why not, in a line.
    """

    planned: PlannedCell
    results: tuple[Result, ...] = ()
    gap: Gap = ""
    reason: str = ""

    @property
    def top1(self) -> float | None:
        """Percent, the mean of the splits."""
        return 100 * fmean(each.score.top1 for each in self.results) if self.results else None

    @property
    def top5(self) -> float | None:
        """Percent, the mean of the splits; None also where there are too few classes."""
        shares = [each.score.top5 for each in self.results if each.score.top5 is not None]
        return 100 * fmean(shares) if shares else None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, points; None also where ours is of other clips or classes."""
        cell, ours = self.planned.cell, self.top1
        if cell.top1 is None or ours is None:
            return None
        if not all(is_comparable(each, cell.data) for each in self.results):
            return None
        return ours - cell.top1

    @property
    def standard_error(self) -> float | None:
        """Of `top1`, points; of several splits that of their mean. None: a split has none."""
        errors = [each.score.standard_error for each in self.results]
        known = [error for error in errors if error is not None]
        if not known or len(known) < len(errors):
            return None
        return 100 * math.hypot(*known) / len(known)

    @property
    def coverage(self) -> tuple[int, int] | None:
        """Clips scored, and expected, of all splits."""
        if not self.results:
            return None
        scores = [each.score for each in self.results]
        return sum(s.num_scored for s in scores), sum(s.num_expected for s in scores)

    @property
    def tested_on(self) -> str:
        """The test splits; of files of keys their names."""
        return ", ".join(_split_text(each.data.test_split) for each in self.results)

    @property
    def notes(self) -> str:
        """What is to be known about the clips of the splits; empty: nothing."""
        notes = (note for each in self.results for note in scope_notes(each))
        return ", ".join(dict.fromkeys(notes))


def _split_text(split: str) -> str:
    """A split; of a file of keys its name."""
    return split if OFFICIAL.fullmatch(split) else Path(split).name


def find_outcomes(
    plan: TablePlan,
    setting: Setting,
    problems: Mapping[Network, str],
    failed: Mapping[Network, str],
    mine: set[str],
) -> list[Outcome]:
    """The cells with the results that are there.

    Args:
        plan: of the table.
        setting: where its runs are.
        problems: why networks cannot be trained here.
        failed: why networks failed.
        mine: names of the trainings that this part of the job does.
    """
    part = _Part(setting, problems, failed, mine)
    return [_outcome(plan, planned, part) for planned in plan.cells]


def _outcome(plan: TablePlan, planned: PlannedCell, part: _Part) -> Outcome:
    if planned.lacking:
        wanted = ",".join(f"{name}=DIR" for name in planned.lacking)
        return Outcome(planned=planned, gap="data", reason=f"not given: --data {wanted}")
    results = []
    for name in planned.trainings:
        found = part.row(plan.trainings[name], planned.cell.stream)
        if not isinstance(found, Result):
            gap, reason = found
            return Outcome(planned=planned, gap=gap, reason=reason)
        results.append(found)
    return Outcome(planned=planned, results=tuple(results))


@dataclass(frozen=True, slots=True)
class _Part:
    """What this part of the job knows of its trainings; the fields are those of `find_outcomes`."""

    setting: Setting
    problems: Mapping[Network, str]
    failed: Mapping[Network, str]
    mine: set[str]

    def row(self, training: Training, stream: str) -> Result | tuple[Gap, str]:
        """The row of a training, or why there is none."""
        name, networks = training.name, ARCHS[training.arch].networks_of(stream)
        if why := _whys(self.failed, name, networks):
            return "failed", why
        problem, other = _whys(self.problems, name, networks), ""
        # Just now: then it was compared with its clips and weights.
        has_run = name in self.mine and not problem
        folder = self.setting.folder(name)
        if self.setting.has_row(name, stream):
            try:
                other = "" if has_run else other_request(training, stream, self.setting)
                if not other:
                    return read_row(folder / stream).result
            except KineticsError as error:
                return "failed", str(error)
        if problem:
            return "here", problem
        if has_run:
            return "failed", "its run has not ended"
        if other:
            return "part", f"{folder} is of another request ({other}); give another --out"
        return "part", "not yet: it is of another task"


def _whys(known: Mapping[Network, str], name: str, networks: Sequence[str]) -> str:
    """The reasons of the networks of a training, each once; empty: there is none."""
    return "; ".join(dict.fromkeys(known[name, at] for at in networks if (name, at) in known))


def table_rows(outcomes: Sequence[Outcome]) -> tuple[list[Cells], list[str]]:
    """The rows by column title, and the reasons that their numbers in brackets mean."""
    reasons = list(dict.fromkeys(each.reason for each in outcomes if each.reason))
    rows = []
    for each in outcomes:
        ours = _number(each.top1)
        if each.reason:
            ours = f"{NOT_RUN} [{reasons.index(each.reason) + 1}]"
        coverage = "-" if each.coverage is None else "{:,} / {:,}".format(*each.coverage)
        row = {
            **_coordinates(each.planned),
            "paper %": _number(each.planned.cell.top1, NOT_CONFIRMED),
            "ours %": ours,
            "difference": _number(each.difference, sign="+"),
            "std. error": _number(each.standard_error),
            "scored / expected": coverage,
        }
        if any(other.planned.cell.top5 is not None for other in outcomes):
            row["paper top-5"] = _number(each.planned.cell.top5)
            row["our top-5"] = _number(each.top5)
        if any(other.notes for other in outcomes):
            row["to be known"] = each.notes or "-"
        rows.append(row)
    return rows, [f"[{at}] {reason}" for at, reason in enumerate(reasons, 1)]


def data_notes(plan: TablePlan) -> list[str]:
    """What ours were trained and tested on, a line for each recipe of a data set."""
    found: dict[str, None] = {}
    for each in plan.trainings.values():
        network = each.recipe.recipe(each.arch, each.networks[0])
        classes = f", {len(each.classes)} classes" if each.classes else ""
        train, test = _split_text(each.train_split), _split_text(each.test_split)
        splits = f"trained on {train}, tested on {test}{classes}"
        found[f"ours on {each.data}, {each.transfer}: recipe {network.name}, {splits}"] = None
    return list(found)


def _coordinates(planned: PlannedCell) -> Cells:
    cell = planned.cell
    return {
        "architecture": cell.arch,
        "stream": cell.stream,
        "data": set_of(cell),
        "init": cell.init,
        "transfer": cell.transfer,
    }


def _number(value: float | None, missing: str = "-", sign: str = "") -> str:
    return missing if value is None else f"{value:{sign}.1f}"


def forecast_rows(
    plan: TablePlan,
    forecasts: Mapping[Network, Forecast],
    problems: Mapping[Network, str],
) -> tuple[list[Cells], list[str]]:
    """What the cells will take, and the reasons that their numbers in brackets mean.

    Trainings that cells share are told with each of them; those before a transfer are rows too.
    """
    reasons: list[str] = []
    known = (forecasts, problems, reasons)
    rows = [
        _forecast_row(_coordinates(each), each.trainings, each.lacking, *known)
        for each in plan.cells
    ]
    parents = {each.parent for each in plan.trainings.values() if each.parent}
    own = {name for each in plan.cells for name in each.trainings}
    for training in plan.trainings.values():
        if training.name in parents - own:
            coordinates = {
                "architecture": training.arch,
                "stream": "joint" if len(training.streams) > 1 else training.streams[0],
                "data": training.data,
                "init": training.init,
                "transfer": "before it",
            }
            rows.append(_forecast_row(coordinates, [training.name], (), *known))
    return rows, [f"[{at}] {reason}" for at, reason in enumerate(reasons, 1)]


def _forecast_row(
    coordinates: Cells,
    names: Sequence[str],
    lacking: Sequence[str],
    forecasts: Mapping[Network, Forecast],
    problems: Mapping[Network, str],
    reasons: list[str],
) -> Cells:
    networks = ARCHS[coordinates["architecture"]].networks_of(coordinates["stream"])
    asked = [(name, each) for name in names for each in networks]
    nothing = dict.fromkeys(("clips", "steps", "done", "hours"), "-")
    why = ""
    if lacking:
        why = f"not given: --data {','.join(f'{name}=DIR' for name in lacking)}"
    whys = dict.fromkeys(problems[at] for at in asked if at in problems)
    why = why or "; ".join(whys)
    if why:
        if why not in reasons:
            reasons.append(why)
        return {**coordinates, **nothing, "state": f"{NOT_RUN} [{reasons.index(why) + 1}]"}
    if not all(at in forecasts for at in asked):
        return {**coordinates, **nothing, "state": "of another task"}
    found = [forecasts[at] for at in asked]
    done = sum(each.plan.steps_done for each in found)
    is_finished = all(each.plan.finished for each in found)
    hours = [each.hours for each in found]
    known = [each for each in hours if each is not None]
    return {
        **coordinates,
        "clips": f"{sum(each.plan.num_clips for each in found) // len(networks):,}",
        "steps": f"{sum(each.plan.num_steps for each in found):,}",
        "done": f"{done:,}",
        "hours": hours_text(sum(known)) if len(known) == len(hours) else "not known",
        "state": "finished" if is_finished else "to continue" if done else "to train",
    }


def hours_text(hours: float) -> str:
    """Hours with as many digits as say something."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def total_text(forecasts: Mapping[Network, Forecast], device: str) -> str:
    """What all trainings together will take, each network once."""
    todo = [each for each in forecasts.values() if not each.plan.finished]
    steps = sum(each.plan.steps_ahead for each in todo)
    known = [each.hours for each in todo if each.hours is not None]
    unit = "GPU hours" if device == "cuda" else f"hours on this {device}"
    text = f"to train: {len(todo)} networks, {steps:,} steps"
    if known:
        text += f", about {hours_text(sum(known))} {unit} at the rate measured now"
    if len(known) < len(todo):
        text += f"; hours not known of {len(todo) - len(known)}"
    return text


def write_table(
    number: int, rows: Sequence[Cells], notes: Sequence[str], plain: str, out: Path
) -> tuple[Path, Path]:
    """Write OUT/table-N.csv and OUT/table-N.html.

    Args:
        number: of the table.
        rows: as they are shown.
        notes: lines below them.
        plain: the CSV.
        out: the folder.
    """
    files = out / f"table-{number}.csv", out / f"table-{number}.html"
    words = {"architecture", "stream", "data", "init", "transfer", "to be known"}
    page = render(
        TEMPLATE,
        number=number,
        title=TITLES[number],
        rows=rows,
        notes=notes,
        numeric=[t for t in rows[0] if t not in words and not t.endswith("input")],
        source=paper.SOURCE,
        tested_on=paper.TESTED_ON.get(number, ""),
    )
    write_text(files[0], plain)
    write_text(files[1], page)
    return files


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def csv_rows(number: int, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The cells as values: percent and points."""
    return [
        {
            "table": number,
            **_coordinates(each.planned),
            "paper_top1": each.planned.cell.top1,
            "top1": _rounded(each.top1),
            "difference": _rounded(each.difference),
            "standard_error": _rounded(each.standard_error),
            "paper_top5": each.planned.cell.top5,
            "top5": _rounded(each.top5),
            "scored": each.coverage and each.coverage[0],
            "expected": each.coverage and each.coverage[1],
            "paper_tested_on": paper.TESTED_ON[number],
            "tested_on": each.tested_on,
            "to_be_known": each.notes,
            "runs": " ".join(each.planned.trainings),
            "not_run": each.reason,
        }
        for each in outcomes
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def size_rows(archs: Sequence[str], num_classes: int = 400) -> list[Cells]:
    """Table 1: parameters and inputs of each architecture, the paper's beside ours."""
    import torch

    rows = []
    for name in archs:
        arch, theirs = ARCHS[name], paper.SIZES[name]
        millions, train, test = 0.0, dict[str, Sampling](), dict[str, Sampling]()
        for network in arch.networks_of(arch.streams[0]):
            with torch.device("meta"):
                net = build(name, network, num_classes)
            millions += sum(weight.numel() for weight in net.parameters()) / 1e6
            sampling = recipe_for("paper", name, network).sampling
            train |= sampling
            extents = PROTOCOLS["paper"].extents(name, net.input_specs, sampling)
            test |= {each: Sampling(e.num or 0, e.stride) for each, e in extents.items()}
        rows.append(
            {
                "architecture": name,
                "stream": arch.streams[0],
                "paper: parameters": f"{theirs.millions} M",
                "ours": f"{millions:.2f} M",
                "difference": f"{millions - theirs.millions:+.2f} M",
                "paper: training input": _input(theirs.train, theirs.train_s),
                "our training input": _own_input(train),
                "paper: test input": _input(theirs.test, theirs.test_s),
                "our test input": _own_input(test),
            }
        )
    return rows


def _own_input(samplings: Mapping[str, Sampling]) -> str:
    seconds = max(each.footprint_s for each in samplings.values())
    return _input({name: each.num for name, each in samplings.items()}, seconds)


def _input(nums: Mapping[str, int], seconds: float) -> str:
    return f"{' + '.join(f'{num} {name}' for name, num in nums.items())}, {seconds:g} s"
