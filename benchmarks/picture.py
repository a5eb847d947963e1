"""The README's picture: some samples' frames, and their flow in colours.

`python -m benchmarks.picture SHARDS SPLIT FILE [KEY ...]`
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from kinetics_tools import cli
from kinetics_tools.errors import lookup
from kinetics_tools.shards import Sample, read_samples

NUM_FRAMES = 6


def colours(flow: npt.NDArray[np.float32], *, full_px: float) -> npt.NDArray[np.float32]:
    """Flow as colours: the hue is the direction, the saturation the speed.

    Args:
        flow: float32 (..., 2), pixels per frame.
        full_px: speed with full saturation.

    Returns:
        float32 (..., 3), RGB in [0, 1]; no motion is white.
    """
    angle = np.arctan2(flow[..., 1], flow[..., 0])
    speed = np.linalg.norm(flow, axis=-1) / full_px
    return np.asarray(
        hsv_to_rgb(np.stack([angle / (2 * np.pi) % 1, speed.clip(0, 1), np.ones_like(speed)], -1)),
        np.float32,
    )


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Draw a row of frames and a row of flow for each sample, and the key to the colours."""
    rows = []
    for sample in samples:
        numbers = np.linspace(1, sample.num_frames - 2, NUM_FRAMES).round().astype(int).tolist()
        flow = sample.flow(numbers)
        full_px = float(np.percentile(np.linalg.norm(flow, axis=-1), 99))
        rows.append((sample, sample.rgb(numbers), colours(flow, full_px=max(full_px, 0.1))))
    figure, axes = plt.subplots(
        2 * len(rows), NUM_FRAMES, figsize=(1.35 * NUM_FRAMES, 2.35 * len(rows)), squeeze=False
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for edge in axis.spines.values():
            edge.set_visible(False)
    for number, (sample, frames, fields) in enumerate(rows):
        for column in range(NUM_FRAMES):
            axes[2 * number, column].imshow(frames[column])
            axes[2 * number + 1, column].imshow(fields[column])
        axes[2 * number, 0].set_ylabel(f"{sample.label}\n(frames)")
        axes[2 * number + 1, 0].set_ylabel("TV-L1 flow")
    _draw_wheel(figure)
    figure.subplots_adjust(0.08, 0.01, 0.88, 0.99, wspace=0.04, hspace=0.04)
    figure.savefig(path, dpi=110)


def _draw_wheel(figure: Figure) -> None:
    """The key to the colours: what points right is drawn right of the middle."""
    y, x = np.mgrid[-1:1:101j, -1:1:101j]
    wheel = colours(np.stack([x, y], -1).astype(np.float32), full_px=1.0)
    wheel[np.hypot(x, y) > 1] = 1
    axis = figure.add_axes((0.895, 0.44, 0.09, 0.12))
    axis.imshow(wheel)
    axis.axis("off")


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("split")
    parser.add_argument("file", type=Path)
    parser.add_argument("keys", nargs="*", help="samples (default: the first of two labels)")
    options = parser.parse_args(argv)
    samples = {sample.key: sample for sample in read_samples(options.shards, options.split)}
    first = {sample.label: sample.key for sample in reversed(list(samples.values()))}
    keys = options.keys or sorted(first.values())[:2]
    draw([lookup("sample", key, samples) for key in keys], options.file)
    return cli.Exit.COMPLETE


if __name__ == "__main__":
    cli.run(partial(_main, sys.argv[1:]))
