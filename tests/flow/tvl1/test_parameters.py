"""The parameters of TV-L1: which values are refused, and which pyramid levels they give."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from kinetics_tools.flow.methods import compute, make_method, stream
from kinetics_tools.flow.tvl1.method import BACKENDS
from kinetics_tools.flow.tvl1.parameters import TVL1Params

WHOLE = ("num_scales", "num_warps", "inner_iterations", "outer_iterations")


@pytest.mark.parametrize("name", TVL1Params().as_json())
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "a", None, True])
def test_a_parameter_that_is_not_above_0_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*{value}"):
        make_method("tvl1", **{name: value})


@pytest.mark.parametrize("name", WHOLE)
def test_a_count_that_is_not_whole_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number, not 2\.5$"):
        make_method("tvl1", **{name: 2.5})


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_a_wrong_number_of_threads_is_refused_at_once(threads: Any) -> None:
    with pytest.raises(ValueError, match=r"^threads must be a whole number above 0, not"):
        stream([], threads=threads)


def test_levels_have_at_least_16_px() -> None:
    assert TVL1Params().level_sizes(36, 80) == [(36, 80), (29, 64), (23, 51), (18, 41)]
    assert TVL1Params(num_scales=2).level_sizes(36, 80) == [(36, 80), (29, 64)]
    assert TVL1Params().level_sizes(1, 5) == [(1, 5)]


def test_levels_end_before_one_that_is_not_smaller() -> None:
    parameters = TVL1Params(scale_step=0.98)

    assert parameters.level_sizes(18, 20) == [(18, 20)]
    assert parameters.level_sizes(18, 26) == [(18, 26), (18, 25), (18, 24)]
    assert parameters.level_sizes(30, 18) == [(30, 18), (29, 18), (28, 18), (27, 18), (26, 18)]


@pytest.mark.parametrize("size", [(18, 20), (18, 26), (30, 18)])
@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "torch"])
def test_backends_agree_on_levels_that_differ_little(backend: str, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).random((3 + size[0], 3 + size[1]))
    picture = (cv2.GaussianBlur(noise, (0, 0), 1.5) * 255).astype(np.uint8)
    frames = np.stack([picture[:-3, :-3], picture[1:-2, 2:-1]])
    parameters: dict[str, Any] = {
        "scale_step": 0.98,
        "num_scales": 3,
        "epsilon": 1e-9,
        "num_warps": 1,
    }
    parameters |= {"inner_iterations": 3, "outer_iterations": 1}
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"

    found = compute(frames, device=device, backend=backend, **parameters)

    assert abs(found - compute(frames, backend="torch", **parameters)).max() <= 1e-3
