"""Layers: padding as in TensorFlow, batch norm with and without scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from kinetics_bench.archs import layers
from kinetics_bench.archs.layers import CONVS, OffsetBatchNorm, SameMaxPool, conv_bn_relu


def naive_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """SAME as TensorFlow documents it, by cases of the remainder."""
    rest = size % stride
    total = max(kernel - (stride if rest == 0 else rest), 0)
    return total // 2, total - total // 2


# Time, height and width; two dimensions have the last two.
sizes = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
windows = st.tuples(st.integers(1, 7), st.integers(1, 3))


@settings(max_examples=150)
@given(st.sampled_from([2, 3]), sizes, windows, windows)
def test_convolution_pads_as_tensorflow(
    dims: int, size: tuple[int, int, int], time: tuple[int, int], space: tuple[int, int]
) -> None:
    kernel = (time[0], space[0], space[0])[-dims:]
    stride = (time[1], space[1], space[1])[-dims:]
    conv = CONVS[dims](2, 3, kernel, stride)  # type: ignore[arg-type]
    grid = torch.rand(1, 2, *size[-dims:])
    pads = [naive_padding(n, k, s) for n, k, s in zip(grid.shape[2:], kernel, stride, strict=True)]
    padded = functional.pad(grid, [n for pad in reversed(pads) for n in pad])
    convolve = functional.conv2d if dims == 2 else functional.conv3d
    expected = convolve(padded, conv.weight, conv.bias, stride)
    with torch.inference_mode():
        found = conv(grid)
    assert found.shape[2:] == tuple(-(-n // s) for n, s in zip(size[-dims:], stride, strict=True))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=100)
@given(st.sampled_from([2, 3]), sizes, st.integers(1, 7), st.integers(1, 7), st.integers(1, 4))
def test_a_convolution_by_space_to_depth_is_the_same(
    dims: int, size: tuple[int, int, int], time: int, space: int, channels: int
) -> None:
    """What CUDA computes: see `SPACE_TO_DEPTH_ON`."""
    kernel = (time, space, space)[-dims:]
    conv = CONVS[dims](channels, 3, kernel, (2,) * dims).double()  # type: ignore[arg-type]
    grid = torch.rand(2, channels, *size[-dims:], dtype=torch.float64, requires_grad=True)
    expected = conv(grid)
    original, converted = layers.space_to_depth, []

    def recorded(x: torch.Tensor) -> torch.Tensor:
        converted.append(x)
        return original(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "SPACE_TO_DEPTH_ON", {"cpu"})
        patch.setattr(layers, "space_to_depth", recorded)
        found = conv(grid)
    assert len(converted) == 2  # input and weight
    torch.testing.assert_close(found, expected)
    direction = torch.rand_like(expected)
    assert conv.bias is not None
    inputs = [grid, conv.weight, conv.bias]
    for one, other in zip(
        torch.autograd.grad(expected, inputs, direction),
        torch.autograd.grad(found, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@settings(max_examples=150)
@given(
    st.sampled_from([2, 3]),
    sizes,
    st.sampled_from([(1, 1), (2, 2), (3, 1), (3, 2)]),
    st.sampled_from([(2, 2), (3, 2)]),
)
def test_max_pool_pads_as_tensorflow(
    dims: int, size: tuple[int, int, int], time: tuple[int, int], space: tuple[int, int]
) -> None:
    kernel = (time[0], space[0], space[0])[-dims:]
    stride = (time[1], space[1], space[1])[-dims:]
    grid = torch.randn(1, 2, *size[-dims:])
    pads = [naive_padding(n, k, s) for n, k, s in zip(grid.shape[2:], kernel, stride, strict=True)]
    cells = [n for pad in reversed(pads) for n in pad]
    padded = functional.pad(grid, cells, value=float("-inf"))
    pool = functional.max_pool2d if dims == 2 else functional.max_pool3d
    expected = pool(padded, kernel, stride)
    assert torch.equal(SameMaxPool(kernel, stride)(grid), expected)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("first", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kernel", [3, 7])
def test_bfloat16_weights_get_the_gradient_of_float32(dims: int, first: int, kernel: int) -> None:
    """OneDNN's own padding gives a wrong gradient on short inputs: see `_SameConv`."""
    torch.manual_seed(0)
    conv = CONVS[dims](16, 32, kernel, bias=False)
    shape = (first, 7, 7)[:dims]
    grid, direction = torch.randn(6, 16, *shape), torch.randn(6, 32, *shape)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = conv(grid)
        (gradient,) = torch.autograd.grad((out.float() * direction).sum(), [conv.weight])
        gradients.append(gradient)
    exact, found = gradients
    assert (found - exact).abs().max() < 0.03 * exact.abs().max()


def calibrated_norm() -> OffsetBatchNorm:
    torch.manual_seed(0)
    norm = OffsetBatchNorm(4, momentum=1.0)
    nn.init.normal_(norm.bias)
    norm.train()(3 + 2 * torch.randn(8, 4, 5))
    return norm.eval()


def test_batch_norm_has_an_offset_and_no_scale() -> None:
    norm = calibrated_norm()
    assert [name for name, _ in norm.named_parameters()] == ["bias"]
    assert set(norm.state_dict()) == {
        *("bias", "running_mean", "running_var", "num_batches_tracked")
    }
    values = torch.randn(2, 4, 3, 3)
    weights = norm.state_dict()
    mean, var, bias = (
        weights[name][:, None, None] for name in ("running_mean", "running_var", "bias")
    )
    expected = (values - mean) / (var + 1e-3).sqrt() + bias
    torch.testing.assert_close(norm(values), expected)


@pytest.mark.parametrize("shape", [(2, 4), (3, 4, 1, 2, 2), (8, 4, 5)])
def test_the_moving_statistics_are_those_of_the_batches(shape: tuple[int, ...]) -> None:
    """Of one batch, with momentum 1: the batch is normalised in evaluation as in training."""
    torch.manual_seed(0)
    first, second = 3 + 2 * torch.randn(shape), 5 * torch.randn(shape)
    norm = OffsetBatchNorm(4, momentum=1.0)
    trained = norm.train()(first)
    torch.testing.assert_close(norm.eval()(first), trained)
    norm = OffsetBatchNorm(4, momentum=0.25).train()
    axes = [axis for axis in range(len(shape)) if axis != 1]
    mean, var = torch.zeros(4), torch.ones(4)
    for batch in (first, second):
        norm(batch)
        mean = 0.75 * mean + 0.25 * batch.mean(axes)
        var = 0.75 * var + 0.25 * batch.var(axes, correction=0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert int(norm.num_batches_tracked) == 2


def test_conversion_to_sync_batch_norm_keeps_the_offset() -> None:
    values = torch.randn(2, 4, 3, 3)
    norm = calibrated_norm()
    norm.keep_scale(torch.rand(4))
    expected = norm(values)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))  # type: ignore[no-untyped-call]
    assert torch.equal(converted(values), expected)


def test_a_scale_is_a_frozen_factor_that_is_saved_and_loaded() -> None:
    plain, scaled = calibrated_norm(), calibrated_norm()
    factors = torch.tensor([0.5, 1.0, 2.0, -1.0])
    scaled.keep_scale(factors)
    values = torch.randn(2, 4, 3, 3)
    offset = plain.bias.detach()[:, None, None]
    expected = (plain(values) - offset) * factors[:, None, None] + offset
    torch.testing.assert_close(scaled(values), expected)
    assert [name for name, _ in scaled.named_parameters()] == ["bias"]
    assert torch.equal(scaled.state_dict()["scale"], factors)
    # Loading adds the scale, or removes it.
    weights, without = scaled.state_dict(), plain.state_dict()
    plain.load_state_dict(weights)
    assert torch.equal(plain(values), scaled(values))
    assert plain.scale is not scaled.scale
    plain.load_state_dict(without)
    assert plain.scale is None
    with pytest.raises(ValueError, match=r"a scale of shape \(3,\) for 4 features"):
        plain.keep_scale(torch.ones(3))


def test_a_network_loads_the_scales_of_a_state_dict() -> None:
    one, other = (conv_bn_relu((3, 4), (1, 1), momentum=0.1) for _ in range(2))
    norm = one.get_submodule("batch_norm")
    assert isinstance(norm, OffsetBatchNorm)
    norm.keep_scale(torch.rand(4))
    other.load_state_dict(one.state_dict())
    grid = torch.rand(2, 3, 4, 4)
    assert torch.equal(other.eval()(grid), one.eval()(grid))
    assert torch.equal(other.state_dict()["batch_norm.scale"], one.state_dict()["batch_norm.scale"])


def test_one_value_per_channel_is_refused_in_training_only() -> None:
    norm = OffsetBatchNorm(4, momentum=0.1)
    with pytest.raises(ValueError, match="batch norm cannot train on one clip"):
        norm.train()(torch.rand(1, 4, 1, 1))
    norm.train()(torch.rand(1, 4, 1, 2))
    norm.eval()(torch.rand(1, 4))
