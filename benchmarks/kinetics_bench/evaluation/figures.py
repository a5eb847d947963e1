"""The pictures of an evaluation: for the page, and as pixels for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kinetics_bench.archs.registry import CHANNELS
from kinetics_bench.evaluation.classes import class_shares, confused
from kinetics_bench.evaluation.results import Predictions
from kinetics_bench.training.checkpoint import EpochRecord
from kinetics_tools.core.html import figure_text, style_axes
from kinetics_tools.extract.flow_colours import colours

Pixels = npt.NDArray[np.uint8]
COLOURS: Final = {"rgb": "#b4532a", "flow": "#2a6fb4", "joint": "#3b3b58"}
MAX_MATRIX: Final = 20  # classes that a matrix can show legibly
WIDTH_IN: Final = 5.4  # about that of a phone, so that letters keep their size there
# What a curve shows: fields of EpochRecord in training and, where it has one, of held-out clips.
CURVES: Final = (
    ("loss", "loss", "val_loss", 1),
    ("top-1 %", "top1", "val_top1", 100),
    ("learning rate", "lr", "", 1),
)
_GRID: Final = 8  # filters in a row of a panel
_MAX_STEPS: Final = 10  # panels of filters in a picture
_ENLARGED: Final = 3  # pixels of the picture per weight


def curves(history: Mapping[str, Sequence[EpochRecord]]) -> Figure:
    """Loss, top-1 and learning rate over the epochs, one line per stream; held-out ones dashed."""
    figure = Figure(figsize=(WIDTH_IN, 6), layout="constrained")
    for axes, (title, *names, scale) in zip(figure.subplots(3, sharex=True), CURVES, strict=True):
        for stream, records in history.items():
            for name, style, what in zip(names, ("-", "--"), ("", ", held-out"), strict=True):
                points = [(each.epoch, getattr(each, name) if name else None) for each in records]
                known = [(epoch, scale * value) for epoch, value in points if value is not None]
                if known:
                    # A line needs two epochs.
                    marker = "o" if len(known) == 1 else None
                    line = {"color": COLOURS[stream], "linestyle": style, "marker": marker}
                    axes.plot(*zip(*known, strict=True), label=f"{stream}{what}", **line)
        axes.set(ylabel=title)
        _scale(axes, history, str(names[0]))
        style_axes(axes)
    figure.axes[0].legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    figure.axes[-1].set(xlabel="epoch")
    return figure


def _scale(axes: Axes, history: Mapping[str, Sequence[EpochRecord]], name: str) -> None:
    rates = {each.lr for records in history.values() for each in records}
    if name == "lr" and 1 < len(rates) <= MAX_MATRIX and min(rates) > 0:
        axes.set_yscale("log")  # a few steps down: the last would be one line with zero
    else:
        axes.set_ylim(bottom=0)


def confusion(predictions: Predictions, labels: Sequence[str]) -> Figure | None:
    """Which class is taken for which: of all classes, or of the most confused of many.

    Args:
        predictions: of the clips.
        labels: class names in index order.

    Returns:
        None if there are many classes and no clip was taken for another.
    """
    shown = list(range(len(labels)))
    if len(labels) > MAX_MATRIX:
        shown = most_confused(predictions)
        if not shown:
            return None
    place = {label_id: at for at, label_id in enumerate(shown)}
    counts = np.zeros((len(shown), len(shown)))
    for true, predicted in zip(
        predictions.label_ids.tolist(), predictions.logits.argmax(axis=1).tolist(), strict=True
    ):
        if true in place and predicted in place:
            counts[place[true], place[predicted]] += 1
    of_class = np.bincount(predictions.label_ids, minlength=len(labels))[shown][:, None]
    return _matrix(counts, counts / np.maximum(of_class, 1), [labels[at] for at in shown])


def most_confused(predictions: Predictions) -> list[int]:
    """Label ids of the classes in the most confused pairs, at most `MAX_MATRIX`, sorted."""
    chosen: set[int] = set()
    for pair in confused(predictions)[:MAX_MATRIX]:
        more = chosen | {pair.true, pair.predicted}
        if len(more) > MAX_MATRIX:
            break
        chosen = more
    return sorted(chosen)


def _matrix(
    counts: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], names: Sequence[str]
) -> Figure:
    side = 2.2 + 0.42 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [figure_text(name, at_most=28) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90)
    axes.set_yticks(range(len(names)), labels)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for true, predicted in np.argwhere(counts):
        ink = "white" if shares[true, predicted] > 0.5 else "black"
        text = f"{counts[true, predicted]:.0f}"
        axes.text(predicted, true, text, ha="center", va="center", color=ink)
    return figure


def per_class(rows: Mapping[str, Predictions], labels: Sequence[str]) -> Figure:
    """Top-1 per class as bars, one per stream, lowest first by the first row.

    Of many classes the lowest and the highest are shown.
    """
    shares = {stream: class_shares(each) for stream, each in rows.items()}
    order = _ends(next(iter(shares.values())))
    height = 0.9 / len(rows)
    figure, axes = _bars([labels[at] for at in order])
    for number, (stream, values) in enumerate(shares.items()):
        places = np.arange(len(order)) + (number - (len(rows) - 1) / 2) * height
        axes.barh(places, 100 * values[order], height * 0.9, color=COLOURS[stream], label=stream)
    axes.set(xlabel="top-1 %", xlim=(0, 100))
    if len(rows) > 1:
        axes.legend(frameon=False, ncols=len(rows), loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def gain(change: npt.NDArray[np.float64], labels: Sequence[str]) -> Figure:
    """Gain of flow over rgb per class as bars, lowest first; of many classes both ends.

    Args:
        change: float (K,), of a share; NaN for classes without a clip.
        labels: class names in index order.
    """
    order = _ends(change)
    figure, axes = _bars([labels[at] for at in order])
    inks = [COLOURS["flow"] if change[at] > 0 else COLOURS["rgb"] for at in order]
    axes.barh(range(len(order)), 100 * change[order], 0.8, color=inks)
    axes.axvline(0, color="#1d2330", linewidth=0.8)
    most = max(10.0, 105 * float(np.abs(change[order]).max(initial=0)))
    axes.set(xlabel="top-1 of flow minus that of rgb, percentage points", xlim=(-most, most))
    return figure


def _ends(values: npt.NDArray[np.float64]) -> list[int]:
    """Where the known values are, lowest first; of many the lowest and the highest."""
    order = [int(at) for at in np.argsort(values, kind="stable") if not np.isnan(values[at])]
    return order if len(order) <= 2 * MAX_MATRIX else order[:MAX_MATRIX] + order[-MAX_MATRIX:]


def _bars(names: Sequence[str]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), [figure_text(name, at_most=28) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    style_axes(axes)
    return figure, axes


def first_layers(net: Mapping[str, Any], streams: Sequence[str]) -> dict[str, Pixels]:
    """The filters of the first layer of each stream of a network (see `first_filters`).

    Args:
        net: state dict of the network, tensors on the CPU.
        streams: what the network sees: `rgb`, `flow`, or both.
    """
    found = {}
    for stream in streams:
        prefix = f"{stream}." if len(streams) > 1 else ""
        for name, weights in net.items():
            if name.startswith(prefix) and _sees(weights.shape, CHANNELS[stream]):
                found[stream] = first_filters(weights.float().numpy(), stream)
                break
    return found


def _sees(shape: Sequence[int], channels: int) -> bool:
    """Whether the kernels of a convolution take frames of so many channels."""
    return (len(shape) == 5 and shape[1] == channels) or (
        len(shape) == 4 and shape[1] % channels == 0
    )


def first_filters(weights: npt.NDArray[np.float32], stream: str) -> Pixels:
    """The filters of a first layer over time, as in the paper's Figure 4.

    From left to right the time steps of the kernel, each a square of all filters. A filter of rgb
    has the colour of its weights, grey is 0; one of flow has the colour of motion that it answers
    to most, white is 0. Each filter has its own scale, over all its steps.

    Args:
        weights: float32 (N, C, T, h, w), or (N, T C, h, w) for channels that are stacked in time.
        stream: `rgb` or `flow`: what the channels are.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    channels = CHANNELS[stream]
    if weights.ndim == 4:  # (N, T C, h, w): the channels of the first step come first
        num, _, *size = weights.shape
        weights = weights.reshape(num, -1, channels, *size).transpose(0, 2, 1, 3, 4)
    steps = np.moveaxis(weights[:, :, :_MAX_STEPS], 1, -1)  # (N, T, h, w, C)
    axes = (1, 2, 3, 4)
    if stream == "flow":
        most = np.linalg.norm(steps, axis=-1, keepdims=True).max(axis=axes, keepdims=True)
        pixels = colours(steps / np.maximum(most, 1e-12), full_px=1.0)
    else:
        most = np.abs(steps).max(axis=axes, keepdims=True)
        scaled = 0.5 + steps / np.maximum(2 * most, 1e-12)
        pixels = (255 * scaled).round().astype(np.uint8)
    return np.concatenate([_panel(pixels[:, at]) for at in range(pixels.shape[1])], axis=1)


def _panel(pixels: Pixels) -> Pixels:
    """Filters uint8 (N, h, w, 3) in a square with white lines, with a margin at the right."""
    num, height, width, _ = pixels.shape
    rows = -(-num // _GRID)
    high, wide = height * _ENLARGED + 2, width * _ENLARGED + 2
    panel = np.full((rows * high, _GRID * wide + 4 * _ENLARGED, 3), 255, np.uint8)
    large = pixels.repeat(_ENLARGED, axis=1).repeat(_ENLARGED, axis=2)
    for number, one in enumerate(large):
        y, x = number // _GRID * high, number % _GRID * wide
        panel[y : y + high - 2, x : x + wide - 2] = one
    return panel


def pixels_of(figure: Figure) -> Pixels:
    """A figure as uint8 (H, W, 3), RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib gives it no types
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()  # type: ignore[no-untyped-call]  # nor this
