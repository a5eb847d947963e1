"""The picture in the README: frames of some samples, and their stored flow in colours.

`python -m kinetics_bench.demo.picture SHARDS SPLIT FILE [KEY ...]`
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from kinetics_tools.core import cli
from kinetics_tools.core.errors import lookup
from kinetics_tools.extract.visualize import Moment, Scale, Strip, draw_sheet
from kinetics_tools.shards.reader import Sample, read_samples

NUM_MOMENTS = 6


def strip_of(sample: Sample, *, flow: str = "tvl1") -> Strip:
    """Moments of a sample, evenly spaced in time."""
    numbers = np.linspace(1, sample.num_frames - 2, NUM_MOMENTS).round().astype(int).tolist()
    moments = [
        Moment(number=number, frame=frame, flows=(field,))
        for number, frame, field in zip(
            numbers, sample.rgb(numbers), sample.flow(numbers), strict=True
        )
    ]
    return Strip(title=sample.label or sample.key, names=(flow,), moments=moments)


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kinetics_bench.demo.picture", description=__doc__
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("split")
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "keys", nargs="*", help="keys of samples (default: the first sample of two labels)"
    )
    options = parser.parse_args(argv)
    samples = {sample.key: sample for sample in read_samples(options.shards, options.split)}
    first = {sample.label: sample.key for sample in reversed(list(samples.values()))}
    keys = options.keys or sorted(first.values())[:2]
    strips = [strip_of(lookup("sample", key, samples)) for key in keys]
    scale = Scale.of(moment for strip in strips for moment in strip.moments)
    draw_sheet(options.file, strips, scale)
    return cli.Exit.COMPLETE


if __name__ == "__main__":
    cli.run(partial(_main, sys.argv[1:]))
