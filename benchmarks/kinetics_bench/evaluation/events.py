"""An evaluation as events of TensorBoard: its scores, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.evaluation import figures
from kinetics_bench.evaluation.results import Predictions, Result
from kinetics_bench.training.log import EVENTS, open_events

EVALUATION: Final = "evaluation"  # apart from the training's events, which a resumed one takes back
SCORES: Final = ("top1", "top5", "mean_class")


def write_events(
    folder: Path,
    result: Result,
    predictions: Predictions,
    epoch: int,
    net: Mapping[str, Any] | None = None,
) -> None:
    """Write an evaluation into `tensorboard/evaluation` in the folder of its row.

    An earlier one of the same epoch is forgotten by readers.

    Args:
        folder: of the row.
        result: the row.
        predictions: of its clips.
        epoch: finished epochs of the training, which are the steps of its own events.
        net: state dict of the network, whose first layer is drawn; None for a sum of networks.
    """
    labels = result.data.labels
    images = {"classes": figures.pixels_of(figures.per_class({result.stream: predictions}, labels))}
    confusion = figures.confusion(predictions, labels)
    if confusion is not None:
        images["confusion"] = figures.pixels_of(confusion)
    if net is not None:
        layers = figures.first_layers(net, ARCHS[result.arch].clips_of(result.stream))
        images |= {f"filters/{stream}": pixels for stream, pixels in layers.items()}
    events = open_events(folder / EVENTS / EVALUATION, epoch)
    for name in SCORES:
        value = getattr(result.score, name)
        if value is not None:
            events.add_scalar(f"evaluation/{name}", value, epoch)
    for name, pixels in images.items():
        events.add_image(f"evaluation/{name}", pixels, epoch, dataformats="HWC")
    events.close()
