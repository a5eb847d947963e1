"""Clips of a test as strips: some frames in a row, and their flow in colours below them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kinetics_bench.evaluation.rows import Row
from kinetics_tools.core.errors import ShardError
from kinetics_tools.core.store import is_address
from kinetics_tools.extract.canvas import Pixels, fit, resize
from kinetics_tools.extract.flow_colours import colours
from kinetics_tools.extract.visualize import Moment, Scale
from kinetics_tools.media.opencv import encode_jpeg
from kinetics_tools.shards.reader import Sample, ShardFolder

NUM_MOMENTS: Final = 5
MAX_PX: Final = 180  # longer side of a frame in a strip
QUALITY: Final = 75
_EDGES: Final = ((0, 3), (0, 3), (0, 0))  # white, right of and below each frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A clip, and what a row says of it.

    Attributes:
        key: of the clip.
        true, predicted: class names.
        p_true, p_predicted: their probabilities, by softmax.
    """

    key: str
    true: str
    predicted: str
    p_true: float
    p_predicted: float


def mistakes(row: Row, num: int) -> list[Seen]:
    """The clips that were taken for another class, the most confident first; at most `num`."""
    return [each for each in _by_confidence(row) if each.true != each.predicted][:num]


def hits(row: Row, num: int) -> list[Seen]:
    """The clips that were recognised, each of another class, the most confident first."""
    best: dict[str, Seen] = {}
    for each in _by_confidence(row):
        if each.true == each.predicted:
            best.setdefault(each.true, each)
    return list(best.values())[:num]


def _by_confidence(row: Row) -> Iterator[Seen]:
    predictions = row.predictions
    shares = predictions.softmax()
    found = shares.argmax(axis=1)
    for at in np.argsort(-shares.max(axis=1), kind="stable").tolist():
        true, predicted = int(predictions.label_ids[at]), int(found[at])
        yield Seen(
            key=predictions.keys[at],
            true=row.labels[true],
            predicted=row.labels[predicted],
            p_true=float(shares[at, true]),
            p_predicted=float(shares[at, predicted]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Strips:
    """Strips of some clips.

    Attributes:
        pictures: key -> JPEG.
        flow: name of the flow that they show; empty: none.
        full_px: pixels per frame of the strongest colours.
    """

    pictures: Mapping[str, bytes]
    flow: str
    full_px: float


def read_strips(row: Row, keys: Collection[str]) -> Strips:
    """Strips of clips of a row, from the shards that it was evaluated on.

    Only a folder on this machine is read: a page about a run asks no other machine for anything.

    Raises:
        KineticsError: the shards are not there, or they are others.
    """
    folder = row.result.data.folder
    if is_address(folder):
        raise ShardError(f"{folder} is not on this machine")
    try:
        data = ShardFolder(Path(folder))
    except OSError as error:  # a name that no folder can have, or no right to read it
        raise ShardError(f"{folder[:200]!r} cannot be read") from error
    if not set(row.labels) <= set(data.labels):  # a network may know some of the classes
        raise ShardError(f"{folder} has other labels now")
    flow = row.result.data.flow or next(iter(data.flows), "")
    samples = _find(row, data, flow, keys)
    moments = {key: _moments(sample, with_flow=bool(flow)) for key, sample in samples.items()}
    fields = [each for own in moments.values() for each in own if each.flows]
    full_px = Scale.of(fields).full_px if fields else 0.0
    return Strips(
        pictures={
            key: encode_jpeg(_strip(own, full_px), quality=QUALITY) for key, own in moments.items()
        },
        flow=flow if fields else "",
        full_px=full_px,
    )


def _find(row: Row, data: ShardFolder, flow: str, keys: Collection[str]) -> dict[str, Sample]:
    """The samples of the keys that the shards still have, with the class that they had."""
    split = row.result.data.test_split
    streams = ("rgb", "flow") if flow else ("rgb",)
    predictions = row.predictions
    classes = dict(zip(predictions.keys, predictions.label_ids.tolist(), strict=True))
    found: dict[str, Sample] = {}
    for name in (split,) if split in data.splits else data.splits:
        for sample in data.samples(name, streams, flow=flow):
            label = row.labels[classes[sample.key]] if sample.key in classes else None
            if sample.key in keys and sample.label == label:
                found[sample.key] = sample
    if not found:
        raise ShardError(f"{data.folder} does not have these clips any more")
    return found


def _moments(sample: Sample, *, with_flow: bool) -> list[Moment]:
    """Moments at equal distances, each in the middle of its share of the clip."""
    num_fields = sample.num_frames - 1
    num = min(NUM_MOMENTS, num_fields) or 1
    numbers = [(2 * at + 1) * num_fields // (2 * num) for at in range(num)]
    frames = sample.rgb(numbers)
    fields = sample.flow(numbers) if with_flow and num_fields else None
    return [
        Moment(number=number, frame=frames[at], flows=() if fields is None else (fields[at],))
        for at, number in enumerate(numbers)
    ]


def _strip(moments: list[Moment], full_px: float) -> Pixels:
    rows = [[moment.frame for moment in moments]]
    if all(moment.flows for moment in moments):
        rows.append([colours(moment.flows[0], full_px=full_px) for moment in moments])
    scale = fit(moments[0].frame.shape[:2], at_least=1, at_most=MAX_PX)
    tiles = [
        [np.pad(resize(each, scale), _EDGES, constant_values=255) for each in row] for row in rows
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in tiles], axis=0)
