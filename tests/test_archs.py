"""The architectures: shapes, counts, padding, names, golden logits."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from benchmarks.archs import ARCHS, build
from benchmarks.archs.i3d import I3D, SameConv, SameMaxPool
from kinetics_tools.errors import UnknownNameError

GOLDEN_FOLDER = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def rgb() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("i3d", num_classes=400).eval()


def test_i3d_has_the_published_number_of_weights(rgb: torch.nn.Module) -> None:
    with torch.device("meta"):
        flow = build("i3d", "flow")
        joint = build("i3d", "joint")
    assert sum(weight.numel() for weight in rgb.parameters()) == 12_689_984
    assert sum(weight.numel() for weight in flow.parameters()) == 12_668_032
    assert sum(weight.numel() for weight in joint.parameters()) == 25_358_016
    statistics = [value for name, value in rgb.named_buffers() if "running" in name]
    assert sum(value.numel() for value in statistics) == 14_560


def test_the_published_checkpoints_names_are_told_by_the_modules(rgb: torch.nn.Module) -> None:
    names = {name for name in rgb.state_dict() if not name.endswith("num_batches_tracked")}
    assert len(names) == 230  # tensors of each of the four published checkpoints
    assert {
        "Conv3d_1a_7x7.conv_3d.weight",
        "Conv3d_2c_3x3.batch_norm.bias",
        "Mixed_3b.Branch_0.Conv3d_0a_1x1.batch_norm.running_mean",
        "Mixed_5b.Branch_2.Conv3d_0a_3x3.conv_3d.weight",  # the irregular one
        "Mixed_5c.Branch_2.Conv3d_0b_3x3.conv_3d.weight",
        "Mixed_5c.Branch_3.Conv3d_0b_1x1.batch_norm.running_var",
        "Logits.Conv3d_0c_1x1.conv_3d.bias",
    } <= names


@pytest.mark.parametrize(("frames", "steps"), [(9, 1), (64, 7), (79, 9), (250, 31)])
def test_time_steps_are_the_published_ones(frames: int, steps: int, rgb: torch.nn.Module) -> None:
    assert isinstance(rgb, I3D)
    with torch.inference_mode():
        assert rgb.step_logits(torch.zeros(1, 3, frames, 32, 32)).shape == (1, 400, steps)


@pytest.mark.parametrize("shape", [(8, 64, 64), (16, 31, 64), (16, 64, 31)])
def test_too_small_an_input_is_told_the_minimum(
    shape: tuple[int, int, int], rgb: torch.nn.Module
) -> None:
    with pytest.raises(ValueError, match="at least 9 frames of 32x32 pixels, got"):
        rgb(torch.zeros(1, 3, *shape))


def test_odd_sizes_pass(rgb: torch.nn.Module) -> None:
    with torch.inference_mode():
        logits = rgb(torch.rand(2, 3, 11, 57, 43))
    assert logits.shape == (2, 400)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ARCHS)
def test_every_weight_learns(name: str) -> None:
    for stream in ("rgb", "flow"):
        net = build(name, stream, 5, dropout=0.0)
        net(torch.rand(2, 3 if stream == "rgb" else 2, 16, 64, 64)).square().sum().backward()
        for weight_name, weight in net.named_parameters():
            assert weight.grad is not None, weight_name
            assert weight.grad.abs().sum() > 0, weight_name


def test_joint_adds_the_logits_of_both() -> None:
    net = build("i3d", "joint", 5).eval()
    rgb, flow = torch.rand(1, 3, 10, 32, 32), torch.rand(1, 2, 9, 32, 32)
    with torch.inference_mode():
        both = net(rgb, flow)
        parts = dict(net.named_children())
        assert torch.equal(both, parts["rgb"](rgb) + parts["flow"](flow))


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'i3d'"):
        build("i3")
    with pytest.raises(UnknownNameError, match="Did you mean 'flow'"):
        build("i3d", "flo")


def naive_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """SAME as TensorFlow documents it, by cases of the remainder."""
    rest = size % stride
    total = max(kernel - (stride if rest == 0 else rest), 0)
    return total // 2, total - total // 2


sizes = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
windows = st.tuples(st.integers(1, 7), st.integers(1, 3))


@settings(max_examples=150, deadline=None)
@given(sizes, windows, windows)
def test_convolution_pads_as_tensorflow(
    size: tuple[int, int, int], time: tuple[int, int], space: tuple[int, int]
) -> None:
    kernel, stride = (time[0], space[0], space[0]), (time[1], space[1], space[1])
    conv = SameConv(2, 3, kernel, stride)
    clips = torch.rand(1, 2, *size)
    pads = [naive_padding(n, k, s) for n, k, s in zip(size, kernel, stride, strict=True)]
    padded = functional.pad(clips, [n for pad in reversed(pads) for n in pad])
    expected = functional.conv3d(padded, conv.weight, conv.bias, stride)
    with torch.inference_mode():
        found = conv(clips)
    assert found.shape[2:] == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=150, deadline=None)
@given(sizes, st.sampled_from([(1, 1), (2, 2), (3, 1), (3, 2)]), st.sampled_from([(2, 2), (3, 2)]))
def test_max_pool_pads_as_tensorflow(
    size: tuple[int, int, int], time: tuple[int, int], space: tuple[int, int]
) -> None:
    kernel, stride = (time[0], space[0], space[0]), (time[1], space[1], space[1])
    clips = torch.randn(1, 2, *size)
    pads = [naive_padding(n, k, s) for n, k, s in zip(size, kernel, stride, strict=True)]
    cells = [n for pad in reversed(pads) for n in pad]
    padded = functional.pad(clips, cells, value=float("-inf"))
    expected = functional.max_pool3d(padded, kernel, stride)
    assert torch.equal(SameMaxPool(kernel, stride)(clips), expected)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kernel", [3, 7])
def test_bfloat16_weights_get_the_gradient_of_float32(num_frames: int, kernel: int) -> None:
    """OneDNN's own padding returns garbage here on short inputs: see SameConv."""
    torch.manual_seed(0)
    conv = SameConv(16, 32, kernel, bias=False)
    clips = torch.randn(6, 16, num_frames, 7, 7)
    direction = torch.randn(6, 32, num_frames, 7, 7)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = conv(clips)
        (gradient,) = torch.autograd.grad((out.float() * direction).sum(), [conv.weight])
        gradients.append(gradient)
    exact, found = gradients
    assert (found - exact).abs().max() < 0.03 * exact.abs().max()


def test_logits_are_the_golden_ones() -> None:
    golden = json.loads((GOLDEN_FOLDER / "archs.json").read_text())
    make = runpy.run_path(str(GOLDEN_FOLDER / "make_archs.py"))
    for stream, logits in make["golden_logits"]().items():
        expected = torch.tensor(golden["logits"][stream])
        torch.testing.assert_close(torch.tensor(logits), expected, atol=golden["tolerance"], rtol=0)
