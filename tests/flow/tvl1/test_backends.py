"""All backends of TV-L1 pass the same tests: the readable one's flow, OpenCV's, hostile input.

A new backend needs its name in `tvl1.method.BACKENDS`, and nothing here, unless it is slow (SMALL)
or not available on every machine (`available`).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kinetics_tools.flow.methods import compute, quantise, stream
from kinetics_tools.flow.tvl1 import torch_reference
from kinetics_tools.flow.tvl1.method import BACKENDS, FASTEST
from kinetics_tools.flow.tvl1.parameters import TVL1Params
from kinetics_tools.media import decode, opencv
from textures import texture

Gray = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]

# A fixed amount of work: no pair converges at this epsilon (except equal frames). One warp per
# level: with more, pixels whose flow leaves the image amplify the last bit of float32 to tenths of
# a pixel (the readable backend in float32 and in float64 differs as much there).
FIXED: dict[str, Any] = {
    "epsilon": 1e-9,
    "inner_iterations": 8,
    "outer_iterations": 2,
    "num_warps": 1,
}
# Triton's interpreter is a thousand times slower than a GPU.
SMALL: dict[str, Any] = {
    "num_scales": 2,
    "num_warps": 1,
    "inner_iterations": 4,
    "outer_iterations": 2,
}


def available(backend: str) -> bool:
    """Whether this machine can run a backend: triton needs a GPU or its interpreter."""
    return backend != "triton" or torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ


def is_slow(backend: str) -> bool:
    return backend == "triton" and not torch.cuda.is_available()


HERE = [backend for backend in BACKENDS if available(backend)]
OTHERS = [backend for backend in HERE if backend != "torch"]
QUICK = [backend for backend in HERE if not is_slow(backend)]
QUICK_OTHERS = [backend for backend in QUICK if backend != "torch"]
# For tests that nearly repeat others: a slow backend takes them among the full ones.
QUICK_FIRST = [pytest.param(b, marks=pytest.mark.full if is_slow(b) else ()) for b in HERE]
QUICK_FIRST_OTHERS = [each for each in QUICK_FIRST if each.values != ("torch",)]


def flow_of(backend: str, frames: Gray, *, threads: int = 1, **parameters: Any) -> Flow:
    """Flow (T-1, H, W, 2) by a backend; slow ones get parameters for less work."""
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    return compute(frames, device=device, threads=threads, backend=backend, **parameters)


def real_frames(folder: Path, name: str, start: int, num: int = 2) -> Gray:
    return opencv.gray(decode.read_frames(folder / name)[start : start + num])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_fastest_backends_exist() -> None:
    assert set(FASTEST.values()) <= set(BACKENDS)


@pytest.mark.parametrize("size", [(47, 66), (20, 131), (16, 16), (33, 35)])
@pytest.mark.parametrize("backend", OTHERS)
def test_a_backend_takes_the_steps_of_the_readable_one(backend: str, size: tuple[int, int]) -> None:
    parameters = {**FIXED, **(SMALL if is_slow(backend) else {})}
    frames = texture(2, *size, (1.4, -0.6))

    difference = abs(
        flow_of(backend, frames, **parameters) - flow_of("torch", frames, **parameters)
    )

    assert np.percentile(difference, 99.9) <= 1e-3


FAITHFUL = [
    ("clips/R6llTwEh07w.mp4", 10),
    ("clips/R6llTwEh07w.mp4", 14),
    ("clips/v_SoccerJuggling_g23_c01.avi", 14),
    ("clips/RATRACE_wave_f_nm_np1_fr_goo_37.avi", 18),
    ("weizmann/jack/daria_jack.avi", 18),
    ("weizmann/run/denis_run.avi", 10),
    ("weizmann/wave2/eli_wave2.avi", 10),
]
REAL = [
    ("clips/arm_wrestling.mp4", 40),
    ("clips/v_SoccerJuggling_g23_c01.avi", 10),
    ("weizmann/run/denis_run.avi", 12),
]


@pytest.mark.parametrize(("name", "start"), REAL)
@pytest.mark.parametrize("backend", QUICK_OTHERS)
def test_a_backend_takes_the_steps_of_the_readable_one_on_real_clips(
    shared_data: Path, backend: str, name: str, start: int
) -> None:
    frames = real_frames(shared_data, name, start)

    difference = abs(flow_of(backend, frames, **FIXED) - flow_of("torch", frames, **FIXED))

    assert np.percentile(difference, 99.9) <= 1e-3


@pytest.mark.parametrize("backend", QUICK_FIRST_OTHERS)
def test_a_backend_stops_where_the_readable_one_stops(backend: str) -> None:
    parameters = SMALL if is_slow(backend) else {"num_warps": 1}
    frames = texture(3, 40, 52, (0.8, 0.3))

    difference = abs(
        flow_of(backend, frames, **parameters) - flow_of("torch", frames, **parameters)
    )

    assert np.percentile(difference, 99.9) <= 0.02


@pytest.mark.parametrize(("name", "start"), REAL)
@pytest.mark.parametrize("backend", QUICK_OTHERS)
def test_a_backend_stops_where_the_readable_one_stops_on_real_clips(
    shared_data: Path, backend: str, name: str, start: int
) -> None:
    frames = real_frames(shared_data, name, start)

    difference = abs(flow_of(backend, frames, num_warps=1) - flow_of("torch", frames, num_warps=1))

    assert np.percentile(difference, 99.9) <= 0.02


@pytest.mark.parametrize("parameters", [{}, FIXED | {"num_warps": 5}], ids=["stopping", "fixed"])
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("weizmann/run/denis_run.avi", 12),
        *(
            pytest.param(name, start, marks=pytest.mark.full)
            for name, start in [*REAL[:2], *FAITHFUL[:2]]
        ),
    ],
)
@pytest.mark.parametrize("backend", QUICK_OTHERS)
def test_a_backend_is_as_near_to_float64_as_the_readable_one_is_in_float32(
    shared_data: Path, backend: str, name: str, start: int, parameters: dict[str, Any]
) -> None:
    # With all warps, float32 does not converge to one flow: see FIXED.
    frames = real_frames(shared_data, name, start)
    images = torch.from_numpy(frames).double()
    truth = (
        torch_reference.between(images[:1], images[1:], TVL1Params(**parameters))
        .permute(0, 2, 3, 1)
        .numpy()
    )

    ours, theirs = (
        np.percentile(abs(flow_of(b, frames, **parameters) - truth), 99.9)
        for b in (backend, "torch")
    )

    assert ours <= 1.5 * theirs


@pytest.mark.parametrize(("name", "start"), REAL)
@pytest.mark.parametrize("backend", QUICK_OTHERS)
def test_a_backend_stores_the_codes_of_the_readable_one(
    shared_data: Path, backend: str, name: str, start: int
) -> None:
    frames = real_frames(shared_data, name, start)

    assert_same_codes(flow_of(backend, frames), flow_of("torch", frames))


def assert_same_codes(ours: Flow, theirs: Flow) -> None:
    """At least 99 % of the codes within 1, and a mean absolute difference of 0.03 px."""
    codes = abs(quantise(ours).astype(int) - quantise(theirs))
    assert (codes <= 1).mean() >= 0.99
    assert abs(ours - theirs).mean() <= 0.03


@pytest.mark.parametrize(("name", "start"), FAITHFUL)
@pytest.mark.parametrize("backend", QUICK_OTHERS)
def test_a_backend_stores_the_codes_of_opencv(
    shared_data: Path, backend: str, name: str, start: int
) -> None:
    frames = real_frames(shared_data, name, start)

    assert_same_codes(flow_of(backend, frames), compute(frames, "opencv-tvl1"))


@pytest.mark.parametrize(("name", "start"), REAL[2:])
@pytest.mark.parametrize(
    "backend", [pytest.param(b, marks=pytest.mark.full) for b in HERE if is_slow(b)]
)
def test_a_slow_backend_goes_through_all_levels_and_warps_on_a_piece_of_a_real_clip(
    shared_data: Path, backend: str, name: str, start: int
) -> None:
    frames = np.ascontiguousarray(real_frames(shared_data, name, start)[:, 60:108, 60:124])
    # The same steps where there is one flow (see FIXED), the same codes with all steps.
    few = {"num_scales": 2, "num_warps": 1, "outer_iterations": 2, "inner_iterations": 4}
    for parameters, limit in (({**few, "epsilon": 1e-9}, 1e-3), (few, 0.02)):
        difference = abs(
            flow_of(backend, frames, **parameters) - flow_of("torch", frames, **parameters)
        )
        assert np.percentile(difference, 99.9) <= limit
    rounds = {"outer_iterations": 2, "inner_iterations": 4}
    assert len(TVL1Params().level_sizes(*frames.shape[1:])) == TVL1Params().num_scales

    assert_same_codes(flow_of(backend, frames, **rounds), flow_of("torch", frames, **rounds))


@pytest.mark.parametrize(("name", "limit"), [("RubberWhale", 0.158), ("Dimetrodon", 0.182)])
@pytest.mark.parametrize("backend", QUICK_OTHERS)
def test_a_backend_has_the_known_end_point_error(
    shared_data: Path, backend: str, name: str, limit: float
) -> None:
    folder = shared_data / "flow" / name
    frames = np.stack(
        [opencv.gray(decode.read_frames(folder / f"frame{n}.png", None)[0]) for n in (10, 11)]
    )
    truth = np.fromfile(folder / "flow10.flo", np.float32, offset=12).reshape(*frames.shape[1:], 2)
    known = (abs(truth) < 1e9).all(axis=2)

    error = np.linalg.norm(flow_of(backend, frames)[0] - truth, axis=2)[known].mean()

    assert error <= limit


@pytest.mark.parametrize("backend", QUICK_FIRST)
def test_equal_frames_have_exactly_no_flow(backend: str) -> None:
    parameters = SMALL if is_slow(backend) else {}
    random = np.random.default_rng(0)
    for frame in (random.integers(0, 256, (1, 37, 53), np.uint8), texture(1, 40, 31, (0, 0))):
        frames = np.repeat(frame, 2 if is_slow(backend) else 3, axis=0)
        assert (flow_of(backend, frames, **parameters) == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (4, 4), (5, 70), (17, 16)])
@pytest.mark.parametrize("backend", HERE)
def test_tiny_and_hostile_frames_have_finite_flow(backend: str, size: tuple[int, int]) -> None:
    parameters = SMALL if is_slow(backend) else {}
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (2, *size), np.uint8)
    black_and_white = (random.random((2, *size)) < 0.5).astype(np.uint8) * 255
    flash = np.stack([np.full(size, value, np.uint8) for value in (0, 255)])

    for frames in (noise, black_and_white, flash):
        found = flow_of(backend, frames, **parameters)
        assert found.shape == (1, *size, 2)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (5, 70), (17, 16)])
@pytest.mark.parametrize("backend", OTHERS)
def test_tiny_frames_take_the_steps_of_the_readable_one(
    backend: str, size: tuple[int, int]
) -> None:
    parameters = {**FIXED, "inner_iterations": 3, "num_warps": 1}
    frames = texture(2, *size, (0.4, -0.3))

    difference = abs(
        flow_of(backend, frames, **parameters) - flow_of("torch", frames, **parameters)
    )

    assert difference.max() <= 1e-3


@pytest.mark.parametrize("backend", QUICK_FIRST)
def test_black_and_white_frames_have_no_flow(backend: str) -> None:
    parameters = SMALL if is_slow(backend) else {}
    for value in (0, 255):
        assert (flow_of(backend, np.full((2, 19, 33), value, np.uint8), **parameters) == 0).all()


@pytest.mark.parametrize("backend", QUICK_FIRST)
def test_flow_of_a_pair_does_not_depend_on_the_others(backend: str) -> None:
    parameters = {"num_warps": 2} | (SMALL if is_slow(backend) else {})
    size = (17, 20) if is_slow(backend) else (40, 52)
    still = np.repeat(texture(1, *size, (0, 0)), 2, axis=0)
    frames = np.concatenate([texture(3, *size, (2.3, 1.1)), still, texture(2, *size, (-6, 3))])

    together = flow_of(backend, frames, **parameters)

    for t, found in enumerate(together):
        assert np.array_equal(found, flow_of(backend, frames[t : t + 2], **parameters)[0])


@pytest.mark.parametrize("backend", QUICK_OTHERS)
def test_flow_does_not_depend_on_the_number_of_threads(backend: str) -> None:
    frames = texture(9, 60, 70, (2.3, 1.1))
    frames[4] = frames[3]  # one pair is done long before its neighbours

    assert np.array_equal(flow_of(backend, frames, threads=3), flow_of(backend, frames))


@pytest.mark.parametrize("backend", HERE)
def test_one_frame_has_no_flow_and_none_has_none(backend: str) -> None:
    assert flow_of(backend, np.zeros((1, 8, 9), np.uint8)).shape == (0, 8, 9, 2)
    assert list(stream([], backend=backend)) == []
