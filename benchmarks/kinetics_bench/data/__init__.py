"""Samples in shards as the views that networks are trained and tested on.

    from pathlib import Path

    import torch

    from kinetics_bench.data import ClipDataset, Reader, network_inputs, select
    from kinetics_bench.recipes import recipe_for
    from kinetics_tools.shards import ShardFolder

    shards = ShardFolder("shards")
    train = select(shards, "ucf101/1", role="train", streams=("rgb",), splits=Path("lists"))
    reader = Reader(recipe_for("paper", "i3d", "rgb"), bound=20.0)
    dataset = ClipDataset.for_training(train.samples, reader, seed=0)
    item = dataset[0, 17]  # epoch 0, sample 17
    (rgb,) = network_inputs(item.clips, torch.device("cpu"))  # float32 (1, 3, 64, 224, 224)

`select` reads a split, also an official one or a file of keys. `ClipLoader` gives batches of clips
to any training loop. `Reader` takes what a network sees of a clip, as bytes (`Crops`);
`network_inputs` makes its input of them, on any device. A `ClipDataset` is a torch dataset of
views, `train_batches` and `eval_items` iterate over one as `run-benchmark` does. `train_view`,
`eval_view`, `middle_view` and `whole_view` compute single views.
Names that are not in `__all__` are private.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinetics_bench.data.clip_loader import ClipLoader
    from kinetics_bench.data.inputs import Crops, network_inputs
    from kinetics_bench.data.loader import (
        Batch,
        BatchPlan,
        ClipDataset,
        Item,
        Reader,
        Step,
        eval_items,
        train_batches,
    )
    from kinetics_bench.data.splits import Selection, select
    from kinetics_bench.data.views import View, eval_view, middle_view, train_view, whole_view

__all__ = [
    "Batch",
    "BatchPlan",
    "ClipDataset",
    "ClipLoader",
    "Crops",
    "Item",
    "Reader",
    "Selection",
    "Step",
    "View",
    "eval_items",
    "eval_view",
    "middle_view",
    "network_inputs",
    "select",
    "train_batches",
    "train_view",
    "whole_view",
]
_MODULES = {
    "clip_loader": "ClipLoader",
    "inputs": "Crops network_inputs",
    "loader": "Batch BatchPlan ClipDataset Item Reader Step eval_items train_batches",
    "splits": "Selection select",
    "views": "View eval_view middle_view train_view whole_view",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: command lines must start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
