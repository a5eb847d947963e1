"""The architectures: shapes, counts, names, time steps, golden logits."""

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kinetics_bench.archs.c3d import C3D, adaptive_pool
from kinetics_bench.archs.convnet_lstm import BatchNormLSTM, ConvNetLSTM
from kinetics_bench.archs.fused import Fused
from kinetics_bench.archs.i3d import I3D
from kinetics_bench.archs.inception import backbone, inflate
from kinetics_bench.archs.registry import ARCHS, CHANNELS, build
from kinetics_bench.archs.table import count
from kinetics_bench.archs.two_stream import stack_frames
from kinetics_tools.core.errors import UnknownNameError
from nets import (
    ALL_NETWORKS,
    C3D_IN_FULL,
    DEVICES,
    calibrated,
    golden_logits,
    num_frames,
    wave,
    waves,
)
from support import ROOT

GOLDEN = ROOT / "tests" / "golden" / "archs.json"
# Parameters at 400 classes, and the millions that the paper's own figures give.
PARAMETERS = {
    ("i3d", "joint"): (25_358_016, 25.358),
    ("i3d", "rgb"): (12_689_984, 12.690),
    ("i3d", "flow"): (12_668_032, 12.668),
    ("convnet-lstm", "rgb"): (8_950_720, 8.95),
    ("c3d", "rgb"): (79_634_576, 79.63),
    ("two-stream", "joint"): (12_058_560, 12.06),
    ("two-stream", "rgb"): (6_002_624, None),
    ("two-stream", "flow"): (6_055_936, None),
    ("3d-fused", "joint"): (39_755_824, 39.76),
}


def num_weights(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize(("name", "stream"), ALL_NETWORKS)
def test_the_number_of_parameters_is_the_papers(name: str, stream: str) -> None:
    with torch.device("meta"):
        found = num_weights(build(name, stream))
    exact, millions = PARAMETERS[name, stream]
    assert found == exact
    if millions is not None:
        assert found / 1e6 == pytest.approx(millions, rel=0.01)
        if stream == ARCHS[name].streams[0]:
            assert ARCHS[name].paper_millions in (int(found / 1e6), int(found / 1e6) + 1)


def test_i3d_has_the_published_number_of_statistics() -> None:
    with torch.device("meta"):
        net = build("i3d")
    statistics = [value for name, value in net.named_buffers() if "running" in name]
    assert sum(value.numel() for value in statistics) == 14_560


def test_modules_have_the_names_of_the_published_checkpoints() -> None:
    with torch.device("meta"):
        net, flat = build("i3d"), build("two-stream")
    names = {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
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
    # Inception-v1 for images has the same parts, of two dimensions.
    assert [name.replace("2d", "3d") for name in flat.state_dict()] == list(net.state_dict())
    kinds = {type(module).__name__ for module in flat.modules()}
    assert "SameConv2d" in kinds
    assert "SameConv3d" not in kinds


@pytest.mark.parametrize(("name", "stream"), ALL_NETWORKS)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_features_and_logits_have_one_column_per_time_step(
    name: str, stream: str, num_steps: int
) -> None:
    with torch.device("meta"):
        net = build(name, stream, 7).eval()
    sizes = num_frames(name, stream, num_steps)
    clips = [
        torch.empty(2, CHANNELS[each], num, 45, 38, device="meta")
        for each, num in zip(ARCHS[name].clips_of(stream), sizes, strict=True)
    ]
    features, logits = net.features(*clips), net.step_logits(*clips)
    assert features.shape[::2] == (2, num_steps)
    assert logits.shape == (2, 7, num_steps)
    assert net(*clips).shape == (2, 7)
    steps = net.step_frames(*sizes)
    assert len(steps) == num_steps
    assert all(start < end <= sizes[-1] for start, end in steps)
    assert steps[-1][1] == sizes[-1]
    in_features = 0
    for last in net.last_layers:
        weight = net.get_submodule(last).weight
        assert isinstance(weight, Tensor)
        assert weight.shape[0] == 7
        in_features += weight.shape[1]
    assert in_features == features.shape[1]


@pytest.mark.parametrize(("frames", "steps"), [(9, 1), (64, 7), (79, 9), (250, 31)])
def test_i3d_has_the_published_time_steps(frames: int, steps: int) -> None:
    with torch.device("meta"):
        net = build("i3d", "rgb", 5)
        assert net.step_logits(torch.empty(1, 3, frames, 32, 32)).shape == (1, 5, steps)
    assert len(net.step_frames(frames)) == steps
    assert net.step_frames(64)[:2] == [(0, 16), (8, 24)]


@pytest.mark.parametrize("name", ARCHS)
def test_the_papers_inputs_pass_in_one_call(name: str) -> None:
    arch = ARCHS[name]
    for stream in arch.streams:
        with torch.device("meta"):
            net = build(name, stream, 5).eval()
            for inputs in (arch.train, arch.test):
                clips = [
                    torch.empty(1, CHANNELS[each], inputs[each].num, arch.crop_px, arch.crop_px)
                    for each in arch.clips_of(stream)
                ]
                assert net(*clips).shape == (1, 5)


def test_inputs_and_footprints_are_those_of_table_1() -> None:
    table = {
        "convnet-lstm": ("25 rgb", 5, "50 rgb", 10),
        "c3d": ("16 rgb", 0.64, "240 rgb", 9.6),
        "two-stream": ("1 rgb, 10 flow", 0.4, "25 rgb, 250 flow", 10),
        "3d-fused": ("5 rgb, 50 flow", 2, "25 rgb, 250 flow", 10),
        "i3d": ("64 rgb, 64 flow", 2.56, "250 rgb, 250 flow", 10),
    }
    assert table.keys() == ARCHS.keys()
    for name, (train, train_s, test, test_s) in table.items():
        arch = ARCHS[name]
        for inputs, text, seconds in ((arch.train, train, train_s), (arch.test, test, test_s)):
            assert ", ".join(f"{each.num} {stream}" for stream, each in inputs.items()) == text
            assert {each.footprint_s for each in inputs.values()} == {seconds}


def test_flops_of_i3d_are_the_published_ones() -> None:
    """OpenVINO's model zoo lists 278.98 G for 79 frames, a multiply-add counted as two."""
    parameters, flops = count("i3d", "rgb", 400, [(3, 79, 224, 224)])
    assert parameters == 12_689_984
    assert flops == pytest.approx(278.98e9, rel=0.01)


def test_i3ds_last_pool_is_the_published_one_at_the_papers_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = deepcopy(calibrated("i3d", "rgb"))
    assert isinstance(net, I3D)
    grid = torch.randn(2, 1024, 8, 7, 7)
    monkeypatch.setattr(net, "feature_map", lambda _: grid)
    with torch.inference_mode():
        found = net.pool_features(torch.empty(0))
        logits = net.classify(found)
    expected = functional.avg_pool3d(grid, (2, 7, 7), stride=1)
    torch.testing.assert_close(found, expected.flatten(2))
    last = net.get_submodule(net.last_layers[0])
    torch.testing.assert_close(logits, last(expected).flatten(2), atol=1e-5, rtol=1e-5)


def test_i3d_averages_its_logits_over_time() -> None:
    net = calibrated("i3d", "flow")
    (clips,) = waves("i3d", "flow", num_steps=3, size=(32, 32))
    with torch.inference_mode():
        steps = net.step_logits(clips)
        torch.testing.assert_close(net(clips), (steps[..., 0] + steps[..., 1] + steps[..., 2]) / 3)
    assert (steps[..., 0] - steps[..., 2]).abs().max() > 1e-4


@pytest.mark.parametrize("shape", [(8, 64, 64), (16, 31, 64), (16, 64, 31)])
def test_too_small_an_input_is_told_the_minimum(shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        net = build("i3d", num_classes=5)
        with pytest.raises(ValueError, match="at least 9 frames of 32x32 pixels, got"):
            net(torch.empty(1, 3, *shape))


@pytest.mark.parametrize(
    ("name", "stream", "shapes", "words"),
    [
        ("c3d", "rgb", [(3, 15, 32, 32)], "3D-ConvNet needs at least 16 frames of 32x32 pixels"),
        ("c3d", "rgb", [(3, 24, 32, 32)], "needs a multiple of 16 rgb frames, got 24"),
        ("two-stream", "flow", [(2, 9, 32, 32)], "needs at least 10 frames"),
        ("two-stream", "joint", [(3, 2, 32, 32), (2, 10, 32, 32)], "10 flow fields per rgb frame"),
        ("3d-fused", "joint", [(3, 5, 32, 32), (2, 100, 32, 32)], "got 100 for 5"),
        ("3d-fused", "joint", [(3, 5, 32, 32)], "is called with rgb, flow; got 1 clips"),
        ("i3d", "rgb", [(2, 9, 32, 32)], r"takes rgb, 3 channels, got 2 channels \(is it flow\?\)"),
        ("i3d", "flow", [(3, 9, 32, 32)], r"takes flow, .* 3 channels \(is it rgb\?\)"),
        ("convnet-lstm", "rgb", [(4, 9, 32, 32)], "got 4 channels$"),
        ("convnet-lstm", "rgb", [(3, 32, 32)], r"takes clips \(B, C, T, H, W\)"),
    ],
)
def test_clips_that_do_not_fit_are_one_line(
    name: str, stream: str, shapes: list[tuple[int, ...]], words: str
) -> None:
    with torch.device("meta"):
        net = build(name, stream, 5)
        with pytest.raises(ValueError, match=words) as caught:
            net(*(torch.empty(1, *shape) for shape in shapes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["convnet-lstm", pytest.param("c3d", marks=pytest.mark.full)])
def test_a_single_clip_is_refused_in_training_where_it_has_no_variance(name: str) -> None:
    net = calibrated(name, "rgb")
    clips = waves(name, "rgb", num_steps=1, num_clips=1, size=(32, 32))
    with torch.inference_mode():
        assert net(*clips).isfinite().all()
    with torch.device("meta"):
        net = build(name, "rgb", 5).train()
        with pytest.raises(ValueError, match="at least 2 clips"):
            net(torch.empty_like(clips[0], device="meta"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "stream"), C3D_IN_FULL)
def test_every_weight_learns(name: str, stream: str, device: str) -> None:
    net = build(name, stream, 5, dropout=0.0).to(device)
    clips = [clip.to(device) for clip in waves(name, stream, num_steps=2, size=(40, 33))]
    before = {key: value.clone() for key, value in net.named_buffers()}
    net.step_logits(*clips).square().sum().backward()  # type: ignore[no-untyped-call]
    for weight_name, weight in net.named_parameters():
        assert weight.grad is not None, weight_name
        assert weight.grad.abs().sum() > 0, weight_name
    assert all(not torch.equal(value, before[key]) for key, value in net.named_buffers())


def test_joint_i3d_adds_the_logits_of_both() -> None:
    net = calibrated("i3d", "joint")
    rgb, flow = torch.rand(1, 3, 17, 32, 32), torch.rand(1, 2, 16, 32, 32)
    parts = dict(net.named_children())
    with torch.inference_mode():
        assert torch.equal(net(rgb, flow), parts["rgb"](rgb) + parts["flow"](flow))
        # Sixteen fields have one step less than seventeen frames.
        assert net.step_logits(rgb, flow).shape == (1, 5, 1)
    assert net.step_frames(17, 16) == [(0, 16)]


def test_joint_two_stream_averages_the_logits_of_both() -> None:
    net = calibrated("two-stream", "joint")
    rgb, flow = waves("two-stream", "joint", size=(32, 32))
    parts = dict(net.named_children())
    with torch.inference_mode():
        both = net(rgb, flow)
        alone = torch.stack([parts["rgb"](rgb), parts["flow"](flow)])
    torch.testing.assert_close(both, alone.mean(dim=0))


def test_a_stack_has_x_and_y_of_field_after_field() -> None:
    fields = torch.arange(2 * 2 * 20, dtype=torch.float32).reshape(2, 2, 20, 1, 1)
    stacked = stack_frames(fields, 10)
    assert stacked.shape == (4, 20, 1, 1)
    for image, (clip, first) in enumerate([(0, 0), (0, 10), (1, 0), (1, 10)]):
        for channel in range(20):
            expected = fields[clip, channel % 2, first + channel // 2]
            assert stacked[image, channel] == expected


@pytest.mark.parametrize("name", ["c3d", "two-stream", "3d-fused"])
def test_windows_are_independent_and_averaged(name: str) -> None:
    """Two windows in one call give the logits that each gives alone."""
    stream = ARCHS[name].streams[0]
    net = calibrated(name, stream)
    clips = waves(name, stream, size=(32, 32))
    with torch.inference_mode():
        both = net.step_logits(*clips)
        halves = [[clip.chunk(2, dim=2)[at] for clip in clips] for at in (0, 1)]
        alone = torch.stack([net(*half) for half in halves], dim=2)
        torch.testing.assert_close(both, alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(net(*clips), alone.mean(dim=2), atol=1e-4, rtol=1e-4)
    assert (alone[:, :, 0] - alone[:, :, 1]).abs().max() > 1e-3


def test_c3d_takes_the_papers_feature_map_and_resizes_others_to_it() -> None:
    with torch.device("meta"):
        net = build("c3d", num_classes=5).eval()
        assert isinstance(net, C3D)
        for px, cells in ((96, 3), (97, 4), (112, 4), (113, 4), (129, 5)):
            assert net.convs(torch.empty(1, 3, 16, px, px)).shape == (1, 512, 1, cells, cells)
            assert net(torch.empty(1, 3, 16, px, px)).shape == (1, 5)


def test_every_pool_of_c3d_halves_time() -> None:
    with torch.device("meta"):
        net = build("c3d", num_classes=5).eval()
        assert isinstance(net, C3D)
        grid, lengths = torch.empty(1, 3, 16, 112, 112), []
        for name, module in net.convs.named_children():
            grid = module(grid)
            if name.startswith("pool"):
                lengths.append(tuple(grid.shape[2:]))
    assert lengths == [(8, 56, 56), (4, 28, 28), (2, 14, 14), (1, 7, 7), (1, 4, 4)]


def test_the_fusion_sees_five_moments_in_their_order() -> None:
    """The input of the fusion is, frame by frame, the output of both backbones."""
    net = deepcopy(calibrated("3d-fused", "joint"))
    assert isinstance(net, Fused)
    rgb, flow = waves("3d-fused", "joint", num_steps=2, num_clips=2, size=(32, 32))
    given: list[Tensor] = []
    net.fusion.register_forward_pre_hook(lambda _, grids: given.append(grids[0]))
    with torch.inference_mode():
        net.step_logits(rgb, flow)
        (fused,) = given
        assert fused.shape == (4, 2048, 5, 1, 1)
        for clip in range(2):
            for frame in range(10):
                fields = flow[clip : clip + 1, :, 10 * frame : 10 * frame + 10]
                stack = fields.transpose(1, 2).flatten(1, 2)
                moment = torch.cat([net.rgb(rgb[clip : clip + 1, :, frame]), net.flow(stack)], 1)
                found = fused[2 * clip + frame // 5, :, frame % 5]
                torch.testing.assert_close(found, moment[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cells", [(1, 2), (3, 4), (5, 7), (8, 9)])
def test_other_feature_maps_are_resized_by_adaptive_pooling(cells: tuple[int, int]) -> None:
    grid = torch.rand(2, 3, 1, *cells)
    found = adaptive_pool(adaptive_pool(grid, 3, 4), 4, 4)
    torch.testing.assert_close(found, functional.adaptive_avg_pool3d(grid, (1, 4, 4)))


def test_the_lstm_ends_with_the_last_step_and_sees_the_order() -> None:
    net = calibrated("convnet-lstm", "rgb", num_steps=3)
    assert isinstance(net, ConvNetLSTM)
    (clips,) = waves("convnet-lstm", "rgb", num_steps=4, size=(32, 32))
    with torch.inference_mode():
        steps = net.step_logits(clips)
        assert torch.equal(net(clips), steps[:, :, -1])
        # A step depends on the steps before it, not on those after it.
        torch.testing.assert_close(net.step_logits(clips[:, :, :2]), steps[:, :, :2])
        reordered = net(clips[:, :, [2, 1, 0, 3]])
    assert (reordered - steps[:, :, -1]).abs().max() > 1e-4


def naive_lstm(lstm: BatchNormLSTM, features: Tensor, *, training: bool) -> Tensor:
    """Equations 6 to 8 of arXiv 1603.09025 written out, in float64: (B, N, T)."""
    parts = {name: value.double() for name, value in lstm.state_dict().items()}

    def norm(name: str, values: Tensor, step: int) -> Tensor:
        at = min(step, len(parts[f"{name}.running_mean"]) - 1)
        mean, var = parts[f"{name}.running_mean"][at], parts[f"{name}.running_var"][at]
        if training:
            mean, var = values.mean(dim=0), values.var(dim=0, correction=0)
        offset = parts.get(f"{name}.bias", torch.zeros(()))
        normal: Tensor = (values - mean) / (var + 1e-5).sqrt() * parts[f"{name}.scale"] + offset
        return normal

    state = cell = torch.zeros(len(features), lstm.num_units, dtype=torch.float64)
    states = []
    for step in range(features.shape[2]):
        entering = features[:, :, step].double() @ parts["input_weight"].T
        gates = norm("input_norm", entering, step) + parts["bias"]
        gates += norm("state_norm", state @ parts["state_weight"].T, step)
        f, i, o, g = gates.chunk(4, dim=1)
        cell = cell * f.sigmoid() + g.tanh() * i.sigmoid()
        state = norm("cell_norm", cell, step).tanh() * o.sigmoid()
        states.append(state)
    return torch.stack(states, dim=2)


def test_the_lstm_is_that_of_cooijmans() -> None:
    torch.manual_seed(0)
    lstm = BatchNormLSTM(6, 4, momentum=1.0).train()
    features = torch.randn(5, 6, 7)
    expected = naive_lstm(lstm, features, training=True)
    torch.testing.assert_close(lstm(features).double(), expected, atol=1e-5, rtol=1e-5)
    lstm.eval()
    # The statistics are of the same batch, with momentum 1.
    torch.testing.assert_close(lstm(features).double(), expected, atol=1e-5, rtol=1e-5)
    longer = torch.randn(3, 6, 30)  # more steps than there are statistics
    expected = naive_lstm(lstm, longer, training=False)
    torch.testing.assert_close(lstm(longer).double(), expected, atol=1e-5, rtol=1e-5)


def test_steps_beyond_those_of_the_training_have_the_statistics_of_its_last_step() -> None:
    torch.manual_seed(0)
    lstm = BatchNormLSTM(6, 4, momentum=0.5).train()
    lstm(torch.randn(5, 6, 7))
    for statistics in (lstm.input_norm.running_mean, lstm.cell_norm.running_var):
        assert not torch.equal(statistics[5], statistics[6])
        assert all(torch.equal(row, statistics[6]) for row in statistics[6:])


def test_boring_videos_are_fixed_points_of_inflation() -> None:
    """On a video of equal frames the inflated backbone gives the output of the 2-D one."""
    torch.manual_seed(0)
    flat = backbone(3, dims=2, momentum=1.0).train().double()
    pictures = torch.stack([wave("rgb", 1, shift=shift)[:, 0] for shift in (0.0, 1.0, 2.0)])
    pictures = pictures.double()
    with torch.inference_mode():
        flat(pictures)  # batch norm takes the statistics of these images
        for name, value in flat.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.1)  # so that offsets are not zero
        inflated = backbone(3, dims=3, momentum=1.0).eval().double()
        inflated.load_state_dict(inflate(flat.state_dict()))
        expected = flat.eval()(pictures[:1])
        # The padding has an effect up to 53 frames from the ends: not on the middle of 16 steps.
        found = inflated(pictures[:1, :, None].expand(-1, -1, 128, -1, -1))
    assert expected.shape == (1, 1024, 2, 2)
    assert found.shape == (1, 1024, 16, 2, 2)
    assert expected.abs().max() > 1
    for step in (7, 8):
        torch.testing.assert_close(found[:, :, step], expected, atol=1e-9, rtol=1e-9)
    assert (found[:, :, 0] - expected).abs().max() > 0.1  # the padding has an effect


def test_inflation_names_every_tensor_of_the_3d_net() -> None:
    flat, net = build("two-stream", "rgb", 5), build("i3d", "rgb", 5)
    inflated = inflate(flat.state_dict())
    assert isinstance(net, I3D)
    net.load_state_dict(inflated)
    kernel = "Conv2d_1a_7x7.conv_2d.weight"
    weight = inflated["Conv3d_1a_7x7.conv_3d.weight"]
    torch.testing.assert_close(weight.sum(dim=2), flat.state_dict()[kernel])
    assert torch.equal(weight[:, :, 0], weight[:, :, 6])


@pytest.mark.parametrize(("name", "stream"), C3D_IN_FULL)
def test_logits_under_autocast_are_float32(name: str, stream: str) -> None:
    net = calibrated(name, stream)
    clips = waves(name, stream, num_steps=1, num_clips=1, size=(32, 32))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert net.features(*clips).dtype == torch.float32
        assert net(*clips).dtype == torch.float32


@pytest.mark.parametrize(("name", "stream"), C3D_IN_FULL)
def test_a_network_cast_as_a_whole_computes_in_that_precision(name: str, stream: str) -> None:
    net = calibrated(name, stream)
    clips = waves(name, stream, num_steps=1, num_clips=1, size=(32, 32))
    with torch.inference_mode():
        found = deepcopy(net).bfloat16()(*(clip.bfloat16() for clip in clips))
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        pytest.param(*each, marks=pytest.mark.full) if each[0] in ("c3d", "3d-fused") else each
        for each in ALL_NETWORKS
    ],
)
def test_checkpointed_activations_change_memory_only(name: str, stream: str) -> None:
    clips = waves(name, stream, num_clips=3)
    states, gradients, kept = [], [], []
    for recomputes in (False, True):
        torch.manual_seed(0)
        net = build(name, stream, 5, dropout=0.0, bn_momentum=0.1).train()
        if recomputes:
            net.checkpoint_activations()
        weights = {weight.data_ptr() for weight in net.parameters()}
        saved: dict[int, int] = {}

        def keep(tensor: Tensor, weights: set[int] = weights, saved: Any = saved) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = net(*clips).square().sum()
        loss.backward()
        states.append(net.state_dict())
        gradients.append([weight.grad for weight in net.parameters()])
        kept.append(sum(saved.values()))

    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    assert kept[1] < 0.7 * kept[0]


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'i3d'"):
        build("i3")
    with pytest.raises(UnknownNameError, match="Did you mean 'flow'"):
        build("i3d", "flo")
    with pytest.raises(UnknownNameError, match="unknown stream of c3d 'flow'"):
        build("c3d", "flow")


@pytest.mark.parametrize(("name", "stream"), C3D_IN_FULL)
def test_logits_are_the_golden_ones(name: str, stream: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    expected = torch.tensor(golden["logits"][f"{name} {stream}"])
    found = torch.tensor(golden_logits(name, stream))
    torch.testing.assert_close(found, expected, atol=golden["tolerance"], rtol=0)


@pytest.mark.full
@pytest.mark.parametrize(("name", "stream"), ALL_NETWORKS)
def test_float32_is_close_to_float64(name: str, stream: str) -> None:
    net = calibrated(name, stream)
    clips = waves(name, stream, size=(32, 32))
    with torch.inference_mode():
        found = net.step_logits(*clips)
        exact = deepcopy(net).double().step_logits(*(clip.double() for clip in clips))
    assert exact.dtype == torch.float64
    assert exact.abs().max() > 0.05
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-4)
