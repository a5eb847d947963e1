"""Samples in shards as the views that networks are trained and tested on.

`select` reads a split, also an official one; `Clips` are views of samples as a torch dataset,
`Reader` says how. Names that are not in `__all__` are private.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinetics_bench.data.loader import (
        Batch,
        BatchPlan,
        Clips,
        Reader,
        eval_items,
        train_batches,
    )
    from kinetics_bench.data.splits import Selection, select
    from kinetics_bench.data.views import View, eval_view, train_view, whole_view

__all__ = [
    "Batch",
    "BatchPlan",
    "Clips",
    "Reader",
    "Selection",
    "View",
    "eval_items",
    "eval_view",
    "select",
    "train_batches",
    "train_view",
    "whole_view",
]
_HOMES = {
    "Batch": "kinetics_bench.data.loader",
    "BatchPlan": "kinetics_bench.data.loader",
    "Clips": "kinetics_bench.data.loader",
    "Reader": "kinetics_bench.data.loader",
    "eval_items": "kinetics_bench.data.loader",
    "train_batches": "kinetics_bench.data.loader",
    "Selection": "kinetics_bench.data.splits",
    "select": "kinetics_bench.data.splits",
    "View": "kinetics_bench.data.views",
    "eval_view": "kinetics_bench.data.views",
    "train_view": "kinetics_bench.data.views",
    "whole_view": "kinetics_bench.data.views",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is used: command lines must start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
