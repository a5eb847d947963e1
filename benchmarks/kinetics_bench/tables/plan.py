"""What a table of the paper needs: its cells, and the trainings that they share.

A cell has a training on its data set; for `fixed` and `full-ft` one on Kinetics comes before it. A
training has a folder of its own, whose name says all that it was asked for, so that cells and
tables share it. An architecture whose joint row is a sum has one for both streams.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from kinetics_bench.archs.registry import ARCHS, STREAMS
from kinetics_bench.evaluation import paper
from kinetics_bench.recipes import RecipeChoice
from kinetics_tools.core.files import digest
from kinetics_tools.core.keys import name_part

KINETICS: Final = "kinetics"
SETS: Final = (KINETICS, *paper.SMALL_SETS)
TABLES: Final = (1, 2, 3, 4, 5)
MEAN_OF_SPLITS: Final = 5  # the table that has it
NUM_SPLITS: Final = 3
FIXED: Final = "fixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """A data set as it was given.

    Attributes:
        data: absolute path or address of its shards.
        train_split: None: the official one.
        test_split: None: the official one, and of Kinetics `stored_test`.
        stored_test: the test split of Kinetics in the shards.
        classes: only these; None: all.
    """

    data: str
    train_split: str | None = None
    test_split: str | None = None
    stored_test: str = "val"
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What holds for all trainings of a table.

    Attributes:
        sets: data sets by name, of SETS.
        recipe: its `name` and `table` count if `is_recipe_given`, its overrides always.
        seed: of each training.
        archs, streams: only cells of these; None: all.
    """

    sets: Mapping[str, DataSet]
    recipe: RecipeChoice
    is_recipe_given: bool = False
    seed: int = 0
    archs: Collection[str] | None = None
    streams: Collection[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training that cells need; it has a folder of its own.

    Attributes:
        name: of its folder.
        arch: a name in ARCHS.
        streams: the rows that are needed, in the order of STREAMS.
        data: a name in SETS.
        train_split, test_split: of that.
        classes: only these; None: all.
        init: the weights before any video was seen.
        transfer: as a Cell of the paper has it.
        recipe: of all its networks.
        parent: name of the training whose weights it starts from; empty: it starts from `init`.
        mark: digits of what was asked for and is not in the name in words; empty: nothing.
    """

    name: str
    arch: str
    streams: tuple[str, ...]
    data: str
    train_split: str
    test_split: str
    classes: tuple[str, ...] | None
    init: str
    transfer: str
    recipe: RecipeChoice
    parent: str = ""
    mark: str = ""

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that are trained, each by its stream."""
        arch = ARCHS[self.arch]
        found = {each for stream in self.streams for each in arch.networks_of(stream)}
        return tuple(stream for stream in arch.networks if stream in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """A cell of the paper, and the trainings whose results it is the mean of.

    Attributes:
        cell: the paper's.
        trainings: their names, one for each split; none if a data set is not given.
        lacking: the data sets that are not given.
    """

    cell: paper.Cell
    trainings: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """A table of the paper as work.

    Attributes:
        number: 2 to 5.
        cells: in the order of the paper.
        trainings: by name; one whose weights another starts from comes before that.
    """

    number: int
    cells: tuple[PlannedCell, ...]
    trainings: Mapping[str, Training] = field(default_factory=dict)

    @property
    def chains(self) -> list[tuple[Training, ...]]:
        """The trainings by what they start from: a training is in one chain, and no chain waits."""
        found: dict[str, list[Training]] = {}
        for training in self.trainings.values():
            found.setdefault(training.parent or training.name, []).append(training)
        return [tuple(chain) for chain in found.values()]


def cells_of(number: int, choices: Choices) -> list[paper.Cell]:
    """The cells of a table that were asked for."""
    return [
        cell
        for cell in paper.CELLS
        if cell.table == number
        and (choices.archs is None or cell.arch in choices.archs)
        and (choices.streams is None or cell.stream in choices.streams)
    ]


def plan_table(number: int, choices: Choices) -> TablePlan:
    """What the cells of a table need.

    Raises:
        KineticsError: the recipe is not for one of the networks.
    """
    trainings: dict[str, Training] = {}
    planned = []
    for cell in cells_of(number, choices):
        needed = dict.fromkeys((set_of(cell), *([KINETICS] if _is_transferred(cell) else [])))
        lacking = tuple(name for name in needed if name not in choices.sets)
        names = []
        for at in () if lacking else _splits(number, cell, choices):
            names.append(_add(trainings, cell, at, choices))
        planned.append(PlannedCell(cell=cell, trainings=tuple(names), lacking=lacking))
    for training in trainings.values():
        for network in training.networks:
            training.recipe.recipe(training.arch, network)
    return TablePlan(number=number, cells=tuple(planned), trainings=trainings)


def set_of(cell: paper.Cell) -> str:
    """The data set of a cell, as it is named here."""
    return KINETICS if cell.data == paper.KINETICS else cell.data


def _is_transferred(cell: paper.Cell) -> bool:
    return cell.transfer != "original"


def _splits(number: int, cell: paper.Cell, choices: Choices) -> Iterator[int]:
    """Numbers of the official splits that a cell is the mean of."""
    name = set_of(cell)
    is_mean = number == MEAN_OF_SPLITS and name in paper.SMALL_SETS
    yield from range(1, 1 + (NUM_SPLITS if is_mean and not choices.sets[name].test_split else 1))


def _add(trainings: dict[str, Training], cell: paper.Cell, at: int, choices: Choices) -> str:
    """Add the training of a cell on a split, and the one before it; return its name."""
    parent = None
    if _is_transferred(cell):
        parent = _training(cell, KINETICS, "original", 0, None, choices)
        _merge(trainings, parent)
    training = _training(cell, set_of(cell), cell.transfer, at, parent, choices)
    _merge(trainings, training)
    return training.name


def _merge(trainings: dict[str, Training], training: Training) -> None:
    """Add a training, or its rows to those of the one that is there."""
    before = trainings.get(training.name, training)
    rows = {*before.streams, *training.streams}
    streams = tuple(stream for stream in STREAMS if stream in rows)
    trainings[training.name] = replace(before, streams=streams)


def _training(
    cell: paper.Cell, data: str, transfer: str, at: int, parent: Training | None, choices: Choices
) -> Training:
    given = choices.sets[data]
    is_small = data in paper.SMALL_SETS
    official = f"{data}/{at}"
    recipe = choices.recipe
    if not choices.is_recipe_given:
        name = FIXED if transfer == FIXED else data if is_small else "paper"
        recipe = replace(recipe, name=name)
    asked = [given.train_split, given.test_split, given.classes, recipe.table]
    if any(name_part(word) != word for word in recipe.words):
        asked.append(recipe.words)  # the name has no room for them
    if any(asked) or (parent is not None and parent.mark):
        mark = digest([*asked, "" if parent is None else parent.mark])[:8]
    else:
        mark = ""
    is_sum = len(ARCHS[cell.arch].networks_of("joint")) > 1
    words = [
        cell.arch if is_sum else f"{cell.arch}-{cell.stream}",
        official.replace("/", "-") if is_small and not given.test_split else data,
        *(cell.init, transfer, recipe.title, *recipe.words),
        *([f"seed-{choices.seed}"] if choices.seed else []),
        *([mark] if mark else []),
    ]
    return Training(
        name="+".join(map(name_part, words)),
        arch=cell.arch,
        streams=(cell.stream,),
        data=data,
        train_split=given.train_split or (official if is_small else "train"),
        test_split=given.test_split or (official if is_small else given.stored_test),
        classes=given.classes,
        init=cell.init,
        transfer=transfer,
        recipe=recipe,
        parent="" if parent is None else parent.name,
        mark=mark,
    )
