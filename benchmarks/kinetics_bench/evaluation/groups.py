"""Results of several seeds, or of several official splits, together."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

from kinetics_bench.evaluation.fusion import SEVERAL_INITS
from kinetics_bench.evaluation.results import Result, percent
from kinetics_bench.evaluation.rows import Row
from kinetics_bench.recipes.recipe import EXTENDED, Recipe
from kinetics_tools.core.files import digest

OFFICIAL: Final = re.compile(r"(ucf101|hmdb51)/([123])")  # a split of one of the three


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that differ in the seed, in the official split, or in both.

    Attributes:
        rows: seed -> number of the split (0: no official one) -> row. Each seed has the same
            splits.
    """

    rows: Mapping[int, Mapping[int, Row]]

    @property
    def one(self) -> Row:
        """One of them: what they share is read off it."""
        return next(row for own in self.rows.values() for row in own.values())

    @property
    def splits(self) -> tuple[int, ...]:
        """Numbers of the splits."""
        return tuple(next(iter(self.rows.values())))

    @property
    def what(self) -> str:
        """What was averaged, in words."""
        numbers = {"splits": len(self.splits), "seeds": len(self.rows)}
        what = " x ".join(f"{number} {name}" for name, number in numbers.items() if number > 1)
        return f"{what}, best.pt" if self.one.is_best else what

    def mean(self, name: str) -> tuple[float, float] | None:
        """Mean and sample deviation of a share of the score, such as `top1`.

        The deviation is that of the seeds, each the mean of its splits; with one seed it is that of
        the splits. None where a row has no such share.
        """
        table = [
            [getattr(row.result.score, name) for row in own.values()] for own in self.rows.values()
        ]
        if any(value is None for own in table for value in own):
            return None
        seeds = [statistics.fmean(own) for own in table]
        return statistics.fmean(seeds), statistics.stdev(seeds if len(seeds) > 1 else table[0])

    def cells(self) -> dict[str, str]:
        """The numbers by column title, as text."""
        shares = {"top-1 %": "top1", "top-5 %": "top5", "mean-class %": "mean_class"}
        found = {title: self.mean(name) for title, name in shares.items()}
        return {"mean of": self.what} | {
            title: "-" if pair is None else f"{percent(pair[0])} ± {percent(pair[1])}"
            for title, pair in found.items()
        }


def groups(rows: Sequence[Row]) -> list[Group]:
    """The rows of several seeds, or of several official splits, together; others are in none.

    Rows are of one group if architecture, stream, recipes, initial weights, protocol and precision
    are equal, and so are the clips, unless these are those of another official split. Rows of
    best.pt and of the last checkpoint are apart. The joint rows of older versions do not tell
    initial weights: those of the rows beside it count.
    """
    alike: dict[tuple[str, int], dict[int, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    clips: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for row in rows:
        if row.result.seed is None:
            continue
        match = OFFICIAL.fullmatch(row.result.data.test_split)
        number = int(match[2]) if match else 0
        beside = [other.result for other in rows if other.folder.parent == row.folder.parent]
        likeness = _likeness(replace(row.result, best=row.is_best), beside)
        own = row.result.score.keys_sha256
        # One split has the same clips in all rows of a group.
        for at in count():
            if clips[likeness, at].setdefault(number, own) == own:
                alike[likeness, at][row.result.seed].setdefault(number, row)
                break
    found = []
    for by_seed in alike.values():
        splits = sorted({split for own in by_seed.values() for split in own})
        parts = [splits]
        if any(len(own) < len(splits) for own in by_seed.values()):
            parts = [[split] for split in splits]  # seeds would be means over other splits
        for part in parts:
            table = {
                seed: {split: own[split] for split in part}
                for seed, own in sorted(by_seed.items())
                if own.keys() >= set(part)
            }
            if len(table) * len(part) > 1:
                found.append(Group(table))
    return found


def _likeness(result: Result, beside: Sequence[Result] = ()) -> str:
    """Equal for results that differ in seed and official split only."""
    data = result.data
    split, train_split = (
        OFFICIAL.sub(r"\1", name or "") for name in (data.test_split, data.train_split)
    )
    inits = [data.init]
    if data.init.source == SEVERAL_INITS and not data.init.sha256:
        inits = [each.data.init for each in beside if each.stream != result.stream]
    fused = result.fused
    return digest(
        [
            *(result.arch, result.stream, result.protocol.hash, list(data.labels)),
            *(data.flow, data.classes, result.cost.precision, train_split),
            # Official splits have other numbers of clips, and other clips. How many clips whole
            # videos hold out depends on the seed.
            data.num_train + data.num_held_out_of_training
            if train_split == data.train_split
            else None,
            result.score.keys_sha256 if split == data.test_split else split,
            [[each.source, each.sha256, each.finetune] for each in inits],
            *(_hashes(result.training), _hashes(result.recipes)),
            _extensions(result.training),
            result.best,
            fused and [fused.of, *([part.weight, _likeness(part.result)] for part in fused.parts)],
        ]
    )


def _hashes(recipes: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted((name, each.hash) for name, each in recipes.items())


def _extensions(recipes: Mapping[str, Recipe]) -> list[str]:
    """Where trainings were made longer: their weights are not those of a length from the start."""
    return sorted(each.name.partition(EXTENDED)[2] for each in recipes.values())
