"""Filters over time and strips of clips: what a pixel means."""

import numpy as np
import pytest
import torch

from kinetics_bench.archs.registry import ARCHS, build
from kinetics_bench.evaluation.classes import Pair, confused, gains
from kinetics_bench.evaluation.figures import first_filters, first_layers
from kinetics_bench.evaluation.results import Predictions
from kinetics_tools.extract.flow_colours import colours

PX = 3  # of a picture per weight
NETWORKS = [(arch, stream) for arch, of in ARCHS.items() for stream in of.networks]


@pytest.mark.parametrize(("arch", "stream"), NETWORKS)
def test_the_first_layer_of_every_network_is_found(arch: str, stream: str) -> None:
    with torch.device("meta"):  # no weights are drawn
        shapes = build(arch, stream, 2).state_dict()
    net = {name: torch.zeros(each.shape) for name, each in shapes.items()}
    streams = ARCHS[arch].clips_of(stream)
    pictures = first_layers(net, streams)
    assert tuple(pictures) == streams
    steps = {"i3d": {"rgb": 7, "flow": 7}, "c3d": {"rgb": 3}}.get(arch, {"rgb": 1, "flow": 10})
    side = 3 if arch == "c3d" else 7
    for name, picture in pictures.items():
        width = steps[name] * (8 * (side * PX + 2) + 4 * PX)
        assert picture.shape == (8 * (side * PX + 2), width, 3), name


def test_a_filter_of_rgb_has_its_colours_at_each_time_step() -> None:
    weights = np.zeros((64, 3, 7, 7, 7), np.float32)
    weights[9, :, 2, 0, 1] = [0.5, -0.5, 0]  # the second of the second row, at the third step
    picture = first_filters(weights, "rgb")
    panel, wide = picture.shape[1] // 7, 7 * PX + 2
    y, x = wide, 2 * panel + wide + PX
    assert picture[y, x].tolist() == [255, 0, 128]
    assert picture[y, x - 1].tolist() == [128, 128, 128]  # beside it
    assert picture[y, x - panel].tolist() == [128, 128, 128]  # the step before


@pytest.mark.parametrize("stacked", [False, True])
def test_a_filter_of_flow_has_the_colour_of_its_motion(stacked: bool) -> None:
    weights = np.zeros((64, 2, 10, 7, 7), np.float32)
    weights[0, :, 4, 3, 3] = [2, 0]  # to the right, at the fifth step
    weights[0, :, 5, 3, 3] = [0, -1]  # up, half as strong, at the sixth
    if stacked:  # x and y of the first field, x and y of the second, and so on
        picture = first_filters(weights.transpose(0, 2, 1, 3, 4).reshape(64, 20, 7, 7), "flow")
    else:
        picture = first_filters(weights, "flow")
    panel = picture.shape[1] // 10
    for step, motion in ((4, [1, 0]), (5, [0, -0.5]), (6, [0, 0])):
        want = colours(np.array(motion, np.float32), full_px=1.0)
        assert picture[3 * PX, step * panel + 3 * PX].tolist() == want.tolist()


def predictions(classes: dict[str, tuple[int, int]], num: int = 3) -> Predictions:
    """Of key -> true and predicted class."""
    eye = np.eye(num, dtype=np.float32)
    return Predictions.of({key: (true, eye[found]) for key, (true, found) in classes.items()}, {})


def test_pairs_are_counted_and_the_most_frequent_comes_first() -> None:
    found = predictions({"a": (0, 1), "b": (0, 1), "c": (0, 0), "d": (2, 1), "e": (1, 0)})
    assert confused(found) == [
        Pair(true=0, predicted=1, num=2, share=2 / 3),
        Pair(true=1, predicted=0, num=1, share=1),
        Pair(true=2, predicted=1, num=1, share=1),
    ]


def test_a_gain_is_that_on_the_clips_that_both_have() -> None:
    rgb = predictions({"a": (0, 1), "b": (0, 0), "c": (1, 1), "only": (0, 1)})
    flow = predictions({"a": (0, 0), "b": (0, 0), "c": (1, 0), "other": (1, 1)})
    change = gains(rgb, flow)
    assert change[:2].tolist() == [0.5, -1.0]
    assert np.isnan(change[2])


def test_weights_that_are_no_kernels_of_the_stream_are_passed_over() -> None:
    net = {"first": torch.zeros(4, 64, 1, 1, 1), "bias": torch.zeros(4)}
    assert first_layers(net, ("rgb",)) == {}
