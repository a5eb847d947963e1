"""Whether an accuracy is of the clips and classes that a number of the paper is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kinetics_bench.evaluation.groups import OFFICIAL
from kinetics_bench.evaluation.paper import KINETICS
from kinetics_bench.evaluation.results import Result
from kinetics_tools.dataset.labels import known_labels

NUM_CLASSES: Final[Mapping[str, int]] = {"ucf101": 101, "hmdb51": 51}
KINETICS_SPLITS: Final = ("val", "test")
# Published lists of Kinetics' validation clips have 19,404 to 19,906, its test set has more. A
# shorter list is a part of them.
LEAST_OF_KINETICS: Final = 19_000


def is_comparable(result: Result, data: str) -> bool:
    """Whether a result is of a whole test set of the paper, with all its classes to choose from.

    Clips of the set's list that were not scored are no reason against it: the coverage tells them.

    Args:
        result: the row.
        data: the data set, as a Cell of the paper has it.
    """
    record, split = result.data, OFFICIAL.fullmatch(result.data.test_split)
    if record.classes is not None or record.out_of_scope:
        return False
    if data != KINETICS:
        is_official = split is not None and split[1] == data
        return is_official and len(record.labels) == NUM_CLASSES[data]
    return (
        record.test_split in KINETICS_SPLITS
        and record.labels == known_labels(KINETICS)
        and result.score.num_expected >= LEAST_OF_KINETICS
    )
