"""The tables of the page: rows by column title, as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kinetics_bench.evaluation import paper
from kinetics_bench.evaluation.classes import class_counts, class_shares, confused, gains
from kinetics_bench.evaluation.comparable import is_comparable
from kinetics_bench.evaluation.compare import compare, points
from kinetics_bench.evaluation.groups import OFFICIAL, Group
from kinetics_bench.evaluation.results import DataRecord, cells, percent, run_of, scope_notes
from kinetics_bench.evaluation.rows import Row
from kinetics_bench.evaluation.strips import Seen
from kinetics_bench.training.checkpoint import InitRecord
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.dataset.labels import known_labels

NUM_PAIRS: Final = 20  # of classes
MEAN_OF_SPLITS: Final = 5  # the table of the paper that has it
Cells = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a run was asked for: what its results do not say.

    Attributes:
        commands: lines that repeat it.
        seed: of the training; None: nothing was trained.
        init: the value of `--init`.
        finetune: the value of `--finetune`.
    """

    commands: tuple[str, ...]
    seed: int | None
    init: str
    finetune: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, another evaluation of a run, or a row that stands alone, such as a fused one.

    Attributes:
        folder: of it.
        rows: its rows, `joint` first.
        asked: what it was asked for; None: unknown.
    """

    folder: Path
    rows: Sequence[Row]
    asked: Asked | None

    @property
    def name(self) -> str:
        """Its folder; of another evaluation of a run: RUN/FOLDER."""
        folder = self.folder.absolute()
        run = run_of(folder)
        return folder.name if run == folder else f"{run.name}/{folder.name}"

    @property
    def streams(self) -> tuple[Row, Row] | None:
        """Its rows of rgb and of flow, if it has both, on clips that both have."""
        by_stream = {row.result.stream: row for row in self.rows}
        if not {"rgb", "flow"} <= by_stream.keys():
            return None
        rgb, flow = by_stream["rgb"], by_stream["flow"]
        keys = set(rgb.predictions.keys) & set(flow.predictions.keys)
        return (rgb, flow) if keys and rgb.labels == flow.labels else None


def results_table(runs: Sequence[Run]) -> list[Cells]:
    """Every row with its numbers, and where one needs a word on its clips, a column for it."""
    noted = {row.folder: ", ".join(scope_notes(row.result)) for run in runs for row in run.rows}
    found = []
    for run in runs:
        for row in run.rows:
            told = {"run": run.name, "network": row.result.network, **cells(row.result)}
            if any(noted.values()):
                # Apart from the number: words are broken between lines, a number is not.
                score = row.result.score
                told["evaluated / in the list"] = f"{score.num_scored} / {score.num_expected}"
                told["to be known"] = noted[row.folder] or "-"
            found.append(told)
    return found


def groups_table(together: Sequence[Group]) -> list[Cells]:
    """Means over seeds and splits."""
    return [
        {
            "network": group.one.result.network,
            "stream": group.one.result.stream,
            "recipe": _recipes(group.one),
            "protocol": group.one.result.protocol_name,
            "initial weights": _init_text(group.one.result.data.init),
            **group.cells(),
        }
        for group in together
    ]


def _recipes(row: Row) -> str:
    return ", ".join(sorted({each.name for each in row.result.training.values()})) or "-"


def runs_table(runs: Sequence[Run]) -> tuple[list[Cells], list[str]]:
    """Each run beside the first: the first row of both, on the clips that both scored.

    Returns:
        the rows; and what a reader should know of them, where A is the run and B the first.
    """
    found, notes = [], defaultdict(list)
    first, *others = runs
    for run in others:
        try:
            pair = compare(run.rows[0], first.rows[0])
        except EvaluationError as error:
            notes[f"cannot be compared with {first.name}: {error}"].append(run.name)
            continue
        top1, test = pair.differences["top1"], pair.test
        ends = top1.interval
        found.append(
            {
                "run": f"{run.name}, {run.rows[0].result.stream}",
                "recipe": _recipes(run.rows[0]),
                "shared clips": f"{pair.num_shared} of {pair.num_videos} videos",
                "top-1 %": percent(pair.a.shared.top1),
                "of the first": percent(pair.b.shared.top1),
                "difference": points(top1.value),
                "95 % interval": "none" if ends is None else " to ".join(map(points, ends)),
                "right alone": f"{test.only_a}, the first {test.only_b}",
                "p": f"{test.p:.2g}",
                "detectable": "-" if pair.detectable is None else percent(pair.detectable),
            }
        )
        for note in pair.notes:
            notes[note].append(run.name)
    return found, [f"{', '.join(names)}: {note}" for note, names in notes.items()]


def paper_table(runs: Sequence[Run], together: Sequence[Group]) -> list[Cells]:
    """The rows that the paper's tables have too, beside the paper's number."""
    found = []
    for run in runs:
        for row in run.rows:
            score, where = row.result.score, row.result.data.test_split
            clips = f"{where}: {score.num_scored} of {score.num_expected} clips"
            clips = ", ".join([clips, *scope_notes(row.result)])
            split = OFFICIAL.fullmatch(where)
            for cell in _cells_of(row, run.asked):
                if cell.table != MEAN_OF_SPLITS and (split is None or split[2] == "1"):
                    found.append(_beside([row], run.name, cell, score.top1, score.top5, clips))
    told = {row.folder: run.asked for run in runs for row in run.rows}
    for group in together:
        row, mean = group.one, group.mean("top1")
        for cell in _cells_of(row, told[row.folder]):
            if cell.table == MEAN_OF_SPLITS and group.splits == (1, 2, 3) and mean is not None:
                name = f"mean of {group.what}"
                rows = [each for own in group.rows.values() for each in own.values()]
                notes = dict.fromkeys(note for each in rows for note in scope_notes(each.result))
                clips = ", ".join(["splits 1 to 3", *notes])
                found.append(_beside(rows, name, cell, mean[0], None, clips))
    return found


def _cells_of(row: Row, asked: Asked | None) -> list[paper.Cell]:
    result = row.result
    split = OFFICIAL.fullmatch(result.data.test_split)
    if split is not None:
        data = split[1]
    elif row.labels == known_labels(paper.KINETICS):
        data = paper.KINETICS
    else:
        return []
    if asked is None or result.fused:
        return []
    init, transfer = asked.init, "original"
    if init == "kinetics":  # the authors': trained on ImageNet, then on Kinetics
        init = "imagenet"
        if result.data.train_split is not None:
            transfer = "fixed" if asked.finetune == "last" else "full-ft"
    return paper.find(result.arch, result.stream, data, init, transfer)


def _beside(
    rows: Sequence[Row],
    name: str,
    cell: paper.Cell,
    top1: float,
    top5: float | None,
    clips: str,
) -> dict[str, str]:
    def number(value: float | None) -> str:
        return "not confirmed" if value is None else f"{value:.1f}"

    change, result = "-", rows[0].result
    if cell.top1 is not None and all(is_comparable(row.result, cell.data) for row in rows):
        change = f"{100 * top1 - cell.top1:+.1f}"
    with_top5 = cell.top5 is not None and top5 is not None
    return {
        "run": name,
        "network": f"{result.arch}, {result.stream}",
        "table": f"{cell.table}, {cell.data}, {cell.init}, {cell.transfer}",
        "paper's top-1 %": number(cell.top1) + (f" (top-5 {cell.top5})" if cell.top5 else ""),
        "ours": percent(top1) + (f" (top-5 {percent(top5)})" if with_top5 else ""),
        "difference": change,
        "the paper tested on": paper.TESTED_ON[cell.table],
        "we tested on": clips,
    }


def covers(row: Row) -> Cells:
    """What the numbers of a row cover."""
    data, score = row.result.data, row.result.score
    failed, missing = len(data.failed_train), len(data.missing_train)
    held_out = data.num_held_out_of_training
    num_listed = data.num_train + missing + held_out
    trained_on = f"{data.train_split}: {data.num_train - failed} / {num_listed} clips"
    gaps = {
        "could not be decoded": failed,
        "not in the shards": missing,
        "held out": held_out,
    }
    why = ", ".join(f"{number} {gap}" for gap, number in gaps.items() if number)
    if why:
        trained_on += f" ({why})"
    return {
        "stream": row.result.stream,
        "trained on": "not trained here" if data.train_split is None else trained_on,
        "held-out clips": (
            f"{data.val_split}: {data.num_held_out} clips" if data.num_held_out else "-"
        ),
        "tested on": data.test_split + ("" if data.classes is None else f" ({_classes(data)})"),
        "in the list": str(score.num_expected),
        "evaluated": str(score.num_scored),
        "failed": str(score.num_failed),
        "top-1 % if these were wrong, or right": " to ".join(map(percent, score.bounds)),
        "top-1 % by the list's classes": percent(score.reweighted),
        "to be known": ", ".join(scope_notes(row.result)) or "-",
        "initial weights": _init_text(data.init),
    }


def _classes(data: DataRecord) -> str:
    """The classes that a test was restricted to."""
    names = data.classes or ()
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} of {len(data.labels)} classes: {', '.join(names[:5])}{more}"


def _init_text(init: InitRecord) -> str:
    digits = f" ({init.sha256[:12]})" if init.sha256 else ""
    return init.source + digits + ("; last layer trained" if init.finetune == "last" else "")


def pairs_table(row: Row) -> list[Cells]:
    """The most confused pairs of classes."""
    return [
        {
            "true class": row.labels[pair.true],
            "taken for": row.labels[pair.predicted],
            "clips": str(pair.num),
            "% of the class": percent(pair.share),
        }
        for pair in confused(row.predictions)[:NUM_PAIRS]
    ]


def classes_table(run: Run) -> list[Cells]:
    """Every class as a row: clips, top-1 of each stream, gain of flow, what it is taken for."""
    best, two = run.rows[0], run.streams
    counts = class_counts(best.predictions)
    shares = {row.result.stream: class_shares(row.predictions) for row in run.rows}
    change = None if two is None else gains(two[0].predictions, two[1].predictions)
    most: dict[int, str] = {}
    for pair in confused(best.predictions):
        most.setdefault(pair.true, f"{best.labels[pair.predicted]} ({pair.num})")
    return [
        {
            "class": label,
            "clips": str(counts[at]),
            **{f"{stream} %": _known(100 * own[at], "") for stream, own in shares.items()},
            **({} if change is None else {"flow - rgb": _known(100 * change[at], "+")}),
            "most often taken for": most.get(at, "-"),
        }
        for at, label in enumerate(best.labels)
    ]


def _known(value: float, sign: str) -> str:
    return "-" if np.isnan(value) else f"{value:{sign}.1f}"


def clip(each: Seen) -> Cells:
    """A clip and what a row says of it."""
    return {
        "clip": each.key,
        "true class": each.true,
        "p(true) %": percent(each.p_true),
        "predicted": each.predicted,
        "p(predicted) %": percent(each.p_predicted),
    }


def cost(row: Row) -> Cells:
    """What the network of a row costs."""
    of = row.result.cost
    return {
        "stream": row.result.stream,
        "recipe": _recipes(row),
        "parameters": f"{of.parameters:,}",
        "GFLOPs per clip": f"{of.flops / 1e9:.1f}",
        "of an input": " + ".join("x".join(map(str, shape)) for shape in of.flops_shape),
        "training": _minutes(of.seconds_training),
        "evaluation": _minutes(of.seconds_evaluation),
        "on": f"{of.device}, {of.precision}",
        "processes x threads": f"{of.num_processes} x {of.num_threads}",
    }


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def hashes(row: Row) -> Cells:
    """What tells a row from others: hashes, cut to 12 digits; result.json has all of them."""
    result = row.result
    identity = result.data.identity
    weights = "-" if isinstance(identity, str) else identity.get("weights", "-")
    return {
        "stream": result.stream,
        "scored clips": result.score.keys_sha256[:12],
        "weights": weights[:12],
        "training recipe": _hashes(result.training),
        "protocol": f"{result.protocol.name} {result.protocol.hash[:12]}",
        "shards": _hashes(result.recipes),
    }


def _hashes(recipes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {each.hash[:12]}" for name, each in recipes.items()) or "-"
