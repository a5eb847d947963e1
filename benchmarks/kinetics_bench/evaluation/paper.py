"""The tables of the paper, 1 to 5, to print beside ours. Importing this is quick.

Source: Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics
Dataset", arXiv 1705.07750 v3; top-5 from github.com/deepmind/kinetics-i3d. Earlier versions of the
paper have other numbers.

A number is here only if two independent copies of its table have it, or the authors' own code. A
cell with one copy only is here without its number, so that a page can say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from kinetics_bench.archs.registry import ARCHS

SOURCE: Final = "Carreira and Zisserman, arXiv 1705.07750 v3"
KINETICS: Final = "kinetics400"
SMALL_SETS: Final = ("ucf101", "hmdb51")
TRANSFERS: Final = ("original", "fixed", "full-ft")
# Table -> which clips the paper tested on.
TESTED_ON: Final[Mapping[int, str]] = {
    2: "split 1, or the test set of Kinetics",
    3: "the test set of Kinetics",
    4: "split 1",
    5: "mean of the three splits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell of a table of the paper.

    Attributes:
        table: 2 to 5.
        arch: a name in ARCHS.
        stream: `rgb`, `flow` or `joint`.
        data: the data set of training and test: `ucf101`, `hmdb51` or `kinetics400`.
        init: the weights before any video was seen: `scratch` or `imagenet`.
        transfer: `original`: trained on `data` directly; `fixed`: on Kinetics, then the last layer
            on `data`; `full-ft`: on Kinetics, then all layers on `data`.
        top1: percent; None: the paper's number is not confirmed.
        top5: percent; None: the paper has none.
    """

    table: int
    arch: str
    stream: str
    data: str
    init: str
    transfer: str = "original"
    top1: float | None
    top5: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A row of Table 1: an architecture with its first stream.

    Attributes:
        millions: of parameters.
        train, test: stream -> number of frames or fields.
        train_s, test_s: seconds of video.
    """

    millions: int
    train: Mapping[str, int]
    train_s: float
    test: Mapping[str, int]
    test_s: float


def _size(millions: int, train: str, train_s: float, test: str, test_s: float) -> Size:
    inputs = [
        dict(zip(("rgb", "flow"), map(int, text.split()), strict=False)) for text in (train, test)
    ]
    return Size(millions=millions, train=inputs[0], train_s=train_s, test=inputs[1], test_s=test_s)


# Table 1, in its order: rgb frames, then flow fields, of training and test.
SIZES: Final[Mapping[str, Size]] = {
    "convnet-lstm": _size(9, "25", 5, "50", 10),
    "c3d": _size(79, "16", 0.64, "240", 9.6),
    "two-stream": _size(12, "1 10", 0.4, "25 250", 10),
    "3d-fused": _size(39, "5 50", 2, "25 250", 10),
    "i3d": _size(25, "64 64", 2.56, "250 250", 10),
}

# UCF-101 rgb, flow, joint; HMDB-51 the same; Kinetics the same. `-`: the paper has no such cell;
# `?`: its number is not confirmed.
_TABLE_2: Final = {
    "convnet-lstm": "81.0  -    -    36.0  -    -    63.3  -    -",
    "c3d": "         51.6  -    -    24.3  -    -    56.1  -    -",
    "two-stream": "  83.6 85.6 91.2  43.2 56.3 58.3  62.2 52.4 65.6",
    "3d-fused": "    83.2 85.8 89.3  49.2 55.5 56.8   -    -   67.2",
    "i3d": "         84.5 90.6 93.4  49.8 61.9 66.4  71.1 63.4 74.2",
}
# Kinetics from scratch: rgb, flow, joint; from ImageNet: the same. Top-5 after a slash.
_TABLE_3: Final = {
    "convnet-lstm": "?  -  -  63.3  -  -",
    "c3d": "56.1  -  -  -  -  -",
    "two-stream": "?  ?  ?  62.2  52.4  65.6",
    "3d-fused": "-  -  ?  -  -  67.2",
    "i3d": "68.4/88.0  61.5/83.4  71.6/90.0  71.1/89.3  63.4/84.9  74.2/91.3",
}
# UCF-101 original, fixed, full-ft from ImageNet; the same from scratch; HMDB-51 the same. Of the
# architecture's first stream.
_TABLE_4: Final = {
    "convnet-lstm": "81.0  ?   ?     ?    ?   ?    36.0  ?   ?     ?    ?   ?",
    "c3d": "          -    -   -    51.6  ?  79.9   -    -   -    24.3  ?  49.4",
    "two-stream": "  91.2  ?   ?     ?    ?   ?    58.3  ?   ?     ?    ?   ?",
    "3d-fused": "    89.3  ?   ?     ?    ?   ?    56.8  ?   ?     ?    ?   ?",
    "i3d": "         93.4  ?  98.0  88.8  ?   ?    66.4  ?  81.2   ?    ?   ?",
}
# I3D, full-ft: UCF-101 from ImageNet, from scratch; HMDB-51 the same.
_TABLE_5: Final = {
    "rgb": "  95.6  ?    74.8  ?",
    "flow": "  ?    ?    77.1  77.3",
    "joint": "98.0  ?    80.7  80.9",
}
_INITS: Final = ("scratch", "imagenet")
_STREAMS: Final = ("rgb", "flow", "joint")


def _read(table: int, arch: str, line: str, **axes: Sequence[str]) -> Iterator[Cell]:
    """The cells of a line: a value for each combination of the axes, the last one changes first."""
    values = line.split()
    for value, found in zip(values, product(*axes.values()), strict=True):
        if value != "-":
            top1, _, top5 = value.partition("/")
            yield Cell(
                table=table,
                arch=arch,
                top1=None if top1 == "?" else float(top1),
                top5=float(top5) if top5 else None,
                **dict(zip(axes, found, strict=True)),
            )


def _cells() -> Iterator[Cell]:
    every = (*SMALL_SETS, KINETICS)
    for arch, line in _TABLE_2.items():
        init = "scratch" if arch == "c3d" else "imagenet"
        yield from _read(2, arch, line, data=every, stream=_STREAMS, init=(init,))
    for arch, line in _TABLE_3.items():
        yield from _read(3, arch, line, data=(KINETICS,), init=_INITS, stream=_STREAMS)
    for arch, line in _TABLE_4.items():
        axes = {"data": SMALL_SETS, "init": _INITS[::-1], "transfer": TRANSFERS}
        yield from _read(4, arch, line, stream=ARCHS[arch].streams[:1], **axes)
    for stream, line in _TABLE_5.items():
        axes = {"data": SMALL_SETS, "init": _INITS[::-1], "transfer": TRANSFERS[-1:]}
        yield from _read(5, "i3d", line, stream=(stream,), **axes)


CELLS: Final = tuple(_cells())  # in the order of the tables


def find(arch: str, stream: str, data: str, init: str, transfer: str = "original") -> list[Cell]:
    """The cells with these coordinates (see Cell), in the order of the tables; none for others."""
    asked = (arch, stream, data, init, transfer)
    return [
        cell
        for cell in CELLS
        if (cell.arch, cell.stream, cell.data, cell.init, cell.transfer) == asked
    ]
