"""Compiled and exported architectures give the logits of eager mode."""

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from kinetics_bench.archs.convnet_lstm import MAX_FRAMES_AT_ONCE
from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS
from nets import calibrated, waves

pytestmark = pytest.mark.full
# A graph is exported with one size, and must fit these too. torch keeps an axis dynamic only if it
# has two cells or more everywhere in the network: 33 pixels, 65 in 3D-Fused, which pools once more.
SIZE = (66, 79)
OTHER_SIZES = ((112, 65), (80, 128))
MORE_STEPS = 3


def net_and_clips(name: str) -> tuple[Network, tuple[Tensor, ...], Tensor]:
    """A network of an architecture, inputs of two time steps, and the logits of eager mode."""
    stream = ARCHS[name].networks[0]
    net = calibrated(name, stream)
    clips = tuple(waves(name, stream, size=SIZE))
    with torch.inference_mode():
        logits = net(*clips)
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    return net, clips, logits


def dynamic_shapes(name: str) -> dict[str, Any]:
    """Any batch and size, and any time but for the LSTM, whose steps are unrolled."""
    dim = torch.export.Dim
    axes = {0: dim("batch", min=1, max=256)}
    axes |= {3: dim("height", min=33 if name != "3d-fused" else 65, max=1024)}
    axes |= {4: dim("width", min=33 if name != "3d-fused" else 65, max=1024)}
    steps: Any = dim("steps", min=2, max=100)
    times: dict[str, list[Any]] = {
        "i3d": [dim("time", min=17, max=1000)],
        "convnet-lstm": [None],
        "c3d": [16 * steps],
        "two-stream": [steps, 10 * steps],
        "3d-fused": [5 * steps, 50 * steps],
    }
    return {"clips": tuple(axes | ({2: time} if time is not None else {}) for time in times[name])}


def other_clips(name: str) -> list[tuple[Tensor, ...]]:
    """Inputs of other batches, sizes and lengths."""
    stream = ARCHS[name].networks[0]
    steps = 2 if name == "convnet-lstm" else MORE_STEPS
    return [
        tuple(waves(name, stream, size=size, num_steps=each, num_clips=batch))
        for size, each, batch in zip(OTHER_SIZES, (2, steps), (1, 3), strict=True)
    ]


def exported(name: str, net: Network, clips: tuple[Tensor, ...]) -> torch.nn.Module:
    shapes = dynamic_shapes(name)
    return torch.export.export(net, clips, dynamic_shapes=shapes, strict=False).module()


@pytest.fixture
def compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler: g++ is missing")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", ARCHS)
def test_compiled(name: str) -> None:
    net, clips, expected = net_and_clips(name)
    torch.compiler.reset()
    with torch.no_grad():
        found = torch.compile(net, fullgraph=True)(*clips)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ARCHS)
def test_exported(name: str) -> None:
    net, clips, expected = net_and_clips(name)
    program = torch.export.export(
        net, clips, dynamic_shapes=dynamic_shapes(name), strict=False
    ).module()
    with torch.no_grad():
        torch.testing.assert_close(program(*clips), expected, atol=1e-4, rtol=1e-4)
        for other in other_clips(name):
            torch.testing.assert_close(program(*other), net(*other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHS)
def test_exported_to_onnx(name: str, tmp_path: Path) -> None:
    net, clips, expected = net_and_clips(name)
    path = tmp_path / "net.onnx"
    program = torch.onnx.export(
        net, clips, dynamo=True, verbose=False, dynamic_shapes=dynamic_shapes(name)
    )
    assert program is not None
    program.save(path, external_data=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for inputs in (clips, *other_clips(name)):
        given = {name: clip.numpy() for name, clip in zip(names, inputs, strict=True)}
        (found,) = session.run(None, given)
        with torch.no_grad():
            expected = net(*inputs)
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=1e-3)


def test_frames_of_many_clips_are_not_split_in_an_exported_graph() -> None:
    """More frames than the ConvNet takes at once in eager mode, where it was exported with few."""
    name = "convnet-lstm"
    net, clips, _ = net_and_clips(name)
    program = torch.export.export(
        net, clips, dynamic_shapes=dynamic_shapes(name), strict=False
    ).module()
    many = tuple(waves(name, "rgb", size=(33, 34), num_clips=MAX_FRAMES_AT_ONCE // 2 + 1))
    with torch.no_grad():
        torch.testing.assert_close(program(*many), net(*many), atol=1e-4, rtol=1e-4)
