import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from types import ModuleType

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinetics_tools.core.errors import KineticsError, UnknownNameError
from kinetics_tools.flow import methods
from kinetics_tools.flow.methods import METHODS, compute, dequantise, quantise, stream
from kinetics_tools.flow.tvl1 import torch_reference
from kinetics_tools.flow.tvl1.method import BACKENDS
from kinetics_tools.flow.tvl1.parameters import TVL1Params
from kinetics_tools.media import opencv
from support import ROOT, environment
from textures import texture

GOLDEN_FOLDER = ROOT / "tests" / "golden"
GOLDEN = json.loads((GOLDEN_FOLDER / "flow.json").read_text())
Gray = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def make_flow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_flow", GOLDEN_FOLDER / "make_flow.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def agreement(
    ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """Mean absolute difference in pixels, and the share of codes that differ by at most 1."""
    codes = quantise(ours).astype(int) - quantise(theirs).astype(int)
    return float(abs(ours - theirs).mean()), float((abs(codes) <= 1).mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [(3, 0), (0, -2)])
def test_a_shifted_texture_gives_its_shift(method: str, step: tuple[int, int]) -> None:
    found = compute(texture(3, 48, 64, step), method)

    assert found.shape == (2, 48, 64, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.median(found, axis=(0, 1, 2)), step, atol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_flow_has_its_golden_quartiles(make_flow: ModuleType, method: str) -> None:
    found = make_flow.quartiles(method)

    limit = GOLDEN["quartiles_tolerance_px"]
    np.testing.assert_allclose(found, GOLDEN["quartiles"][method], rtol=0, atol=limit)


def test_the_first_warp_has_its_golden_values(make_flow: ModuleType) -> None:
    limit = GOLDEN["first_warp_tolerance_px"]
    np.testing.assert_allclose(make_flow.first_warp(), GOLDEN["first_warp"], rtol=0, atol=limit)


@pytest.mark.parametrize(("num_scales", "num_warps"), [(1, 1), (1, 5), (3, 1)])
def test_tvl1_takes_the_steps_of_opencv(num_scales: int, num_warps: int) -> None:
    before, after = texture(2, 47, 66, (1.4, -0.6))
    theirs = cv2.optflow.DualTVL1OpticalFlow.create(nscales=num_scales, warps=num_warps)

    ours = compute(np.stack([before, after]), num_scales=num_scales, num_warps=num_warps)[0]

    difference = abs(ours - theirs.calc(before, after, np.zeros((47, 66, 2), np.float32)))
    # Steps are the same but for rounding, which a few pixels at the border blow up.
    assert np.percentile(difference, 99) < 1e-3


def test_tvl1_agrees_with_opencv_on_textures() -> None:
    for number, (height, width) in enumerate([(48, 64), (61, 83), (20, 100), (15, 15)]):
        frames = texture(3, height, width, (1.7, -0.6), seed=number)

        mad, within_1 = agreement(compute(frames, "tvl1"), compute(frames, "opencv-tvl1"))

        # A good part of so small a frame is border, where flow that leaves it amplifies rounding.
        assert mad < 0.03, (height, width)
        assert within_1 > 0.99, (height, width)


def test_flow_does_not_depend_on_the_number_of_threads() -> None:
    images = torch.from_numpy(texture(4, 90, 120, (2.3, 1.1))).float()
    parameters = TVL1Params(num_scales=2, num_warps=1, outer_iterations=1)
    one = torch_reference.between(images[:-1], images[1:], parameters)

    torch.set_num_threads(2)

    assert torch.equal(torch_reference.between(images[:-1], images[1:], parameters), one)


def test_float32_and_float64_agree() -> None:
    images = torch.from_numpy(texture(2, 48, 64, (1.2, 0.4)))
    parameters = TVL1Params(num_warps=1)

    single = torch_reference.between(images[:1].float(), images[1:].float(), parameters)
    double = torch_reference.between(images[:1].double(), images[1:].double(), parameters)

    assert double.dtype == torch.float64
    assert torch.quantile((single - double).abs(), 0.99) < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_equal_frames_give_exactly_no_flow(method: str) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 37, 53), np.uint8)

    assert (compute(np.repeat(frame, 3, axis=0), method) == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_frames_have_exactly_no_flow(method: str, value: int) -> None:
    assert (compute(np.full((3, 21, 34), value, np.uint8), method) == 0).all()


@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.just(2), st.integers(1, 24), st.integers(1, 24)),
        elements=st.sampled_from([0, 1, 128, 254, 255]),
        fill=st.sampled_from([0, 255]),
    )
)
@settings(max_examples=25)
def test_flow_is_always_finite(frames: Gray) -> None:
    assert np.isfinite(compute(frames)).all()


CPU_BACKENDS = [("tvl1", {"backend": backend}) for backend in BACKENDS if backend != "triton"]
QUICK = {"num_scales": 1, "num_warps": 1, "outer_iterations": 1, "inner_iterations": 2}
PRINT_PEAKS_OF_A_STREAM = """
import sys
from pathlib import Path
import numpy as np
from kinetics_tools.flow.methods import stream

def peak_kib():
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1])

few, many = 400, 4000
random = np.random.default_rng(0)
still = random.integers(0, 256, (96, 64), np.uint8)
moves = METHOD != "opencv-tvl1"  # it has no parameters, and is slow where frames move
frames = (np.roll(still, number * moves, axis=1) for number in range(many + 1))
for number, field in enumerate(stream(frames, METHOD, "cpu", threads=2, **OPTIONS), start=1):
    if number == few:
        print(peak_kib())
print(number, peak_kib())
"""


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((m, o | QUICK) for m, o in CPU_BACKENDS),
        pytest.param("opencv-tvl1", {}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_a_long_stream_needs_no_more_memory_than_a_short_one(
    method: str, options: dict[str, object]
) -> None:
    code = f"METHOD, OPTIONS = {method!r}, {options!r}\n{PRINT_PEAKS_OF_A_STREAM}"

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )

    early, num, late = map(int, done.stdout.split())
    assert num == 4000
    # 3,600 frames are 22 MB, their flow is 177 MB.
    assert late - early < 8 * 1024


@pytest.mark.parametrize("method", METHODS)
def test_one_frame_has_no_flow_and_none_has_none(method: str) -> None:
    assert compute(np.zeros((1, 8, 9), np.uint8), method).shape == (0, 8, 9, 2)
    assert list(stream([], method)) == []


def test_the_median_filter_is_that_of_opencv() -> None:
    images = torch.rand(2, 2, 11, 7)

    found = torch_reference._median_5x5(images)

    for image, median in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        assert np.array_equal(median.numpy(), cv2.medianBlur(image.numpy(), 5))


def test_a_stream_reads_only_a_batch_ahead() -> None:
    read = 0

    def endless() -> Iterator[Gray]:
        nonlocal read
        while True:
            read += 1
            yield np.zeros((128, 128), np.uint8)

    fields = stream(endless(), backend="torch")
    for _ in range(3):
        next(fields)

    assert read <= 3 + torch_reference.BATCH_PX["cpu"] // 128**2


def test_frames_that_change_size_or_type_are_refused_in_one_line() -> None:
    whole, part = np.zeros((8, 8), np.uint8), np.zeros((8, 6), np.uint8)
    with pytest.raises(ValueError, match=r"frame 2 is \(8, 6\), the first one is \(8, 8\)"):
        list(stream([whole, whole, part]))
    with pytest.raises(ValueError, match="frame 0 is float64"):
        list(stream([np.zeros((8, 8))]))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least 3x3 pixels"):
        list(stream([np.zeros((2, 8), np.uint8)] * 2, "opencv-tvl1"))


def test_an_unknown_name_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'tvl1'\? Known: opencv-tvl1, tvl1"):
        stream([], "tvl")
    with pytest.raises(ValueError, match="taw"):
        stream([], taw=0.1)
    with pytest.raises(ValueError, match="tau must be above 0"):
        stream([], tau=0)
    with pytest.raises(KineticsError, match="not one of auto, cpu, cuda"):
        stream([], device="gpu")
    with pytest.raises(KineticsError, match="runs on cpu only"):
        stream([], "opencv-tvl1", device="cuda")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(KineticsError, match=f"no device '{absent}' here; there is cpu"):
        stream([], device=absent)


def test_a_missing_device_is_an_error_with_the_existing_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = methods.make_method("tvl1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cuda", "cuda:0", "cuda:0,3"):
        with pytest.raises(KineticsError, match=rf"no device '{name}' .* cpu; use 'cpu'$"):
            methods.find_devices(name, method)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(KineticsError, match=r"there is cpu, cuda:0, cuda:1; use 'cuda:1'$"):
        methods.find_devices("cuda:0,2", method)
    assert methods.find_devices("cuda:1", method) == ("cuda:1",)


def test_more_iterations_change_flow() -> None:
    frames = texture(2, 40, 40, (2, 0))

    fewer = compute(frames, num_warps=1, outer_iterations=1, inner_iterations=2)

    assert abs(fewer - compute(frames)).max() > 0.1


def test_names_of_methods_and_codecs_need_no_heavy_import() -> None:
    code = (
        "import sys; from kinetics_tools.flow.methods import METHODS; "
        "from kinetics_tools.flow.codecs import CODECS; assert METHODS and CODECS; "
        "print(*{'torch', 'cv2', 'numpy', 'av'} & {*sys.modules})"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == []


def test_tvl1_on_a_cpu_does_not_import_torch() -> None:
    code = (
        "import sys; import numpy as np; from kinetics_tools.flow.methods import compute; "
        "compute(np.zeros((2, 16, 16), np.uint8), method='tvl1', device='cpu'); "
        "print('torch' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["False"]


flows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).map(lambda shape: (*shape, 2)),
    elements=st.floats(-40, 40, width=32),
)


@given(flows, st.sampled_from([20.0, 5.0, 31.0]))
@settings(max_examples=60)
def test_quantised_flow_comes_back_within_one_step(
    fields: npt.NDArray[np.float32], bound: float
) -> None:
    step = 2 * bound / 255
    clamped = fields.clip(-bound, bound)

    back = dequantise(quantise(fields, bound=bound), bound=bound)

    # floor never rounds up: what comes back is at most one step below.
    assert (back <= clamped + 1e-4).all()
    assert (back >= clamped - step - 1e-4).all()


def test_codes_follow_the_formula() -> None:
    values = np.array([-25, -20, -19.99, 0, 0.08, 19.9, 20, 90], np.float32)
    clamped = (Fraction(float(value.clip(-20, 20))) for value in values)

    assert quantise(values).tolist() == [255 * (value + 20) // 40 for value in clamped]
    assert quantise(values).tolist() == [0, 0, 0, 127, 128, 254, 255, 255]
    assert dequantise(np.array([0, 255], np.uint8)).tolist() == [-20, 20]


def test_codes_are_monotonic() -> None:
    codes = quantise(np.linspace(-21, 21, 5001, dtype=np.float32))

    assert all(a <= b for a, b in pairwise(codes.tolist()))
    assert set(codes.tolist()) == set(range(256))


def test_nan_and_a_bound_of_0_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        quantise(np.array([np.nan, 0], np.float32))
    with pytest.raises(ValueError, match="bound"):
        quantise(np.zeros(2, np.float32), bound=0)


def test_the_hash_of_a_recipe_covers_what_changes_flow() -> None:
    parameters = methods.make_method("tvl1").as_json()
    base = methods.FlowRecipe(method="tvl1", parameters=parameters)

    same = methods.FlowRecipe(method="tvl1", parameters=dict(reversed(parameters.items())))
    other = methods.FlowRecipe(method="tvl1", parameters=parameters | {"tau": 0.2})

    assert base.hash == same.hash
    assert base.hash != other.hash
    assert base.hash != methods.FlowRecipe(method="tvl1", parameters=parameters, bound=10).hash


def test_gray_is_that_of_opencv_for_any_number_of_frames() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)

    found = opencv.gray(rgb)

    assert found.shape == (3, 5, 7)
    assert np.array_equal(found[1], opencv.gray(rgb[1]))
    assert np.array_equal(found[2], cv2.cvtColor(rgb[2], cv2.COLOR_RGB2GRAY))
