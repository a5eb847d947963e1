"""Compiled and exported architectures give the logits of eager mode."""

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS
from nets import calibrated, waves

pytestmark = pytest.mark.full
SIZE = (40, 33)


def net_and_clips(name: str) -> tuple[Network, tuple[Tensor, ...], Tensor]:
    """A network of an architecture, inputs of two time steps, and the logits of eager mode."""
    stream = ARCHS[name].networks[0]
    net = calibrated(name, stream)
    clips = tuple(waves(name, stream, size=SIZE))
    with torch.inference_mode():
        logits = net(*clips)
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    return net, clips, logits


def any_batch(clips: tuple[Tensor, ...]) -> dict[str, Any]:
    """The dynamic shapes of a network's inputs: any number of clips."""
    return {"clips": tuple({0: torch.export.Dim.DYNAMIC} for _ in clips)}


def repeated(clips: tuple[Tensor, ...], number: int) -> tuple[Tensor, ...]:
    """A batch of so many clips, those of a smaller one over and over."""
    return tuple(clip[torch.arange(number) % len(clip)] for clip in clips)


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
    program = torch.export.export(net, clips, dynamic_shapes=any_batch(clips))
    for number in (2, 3, 5):
        more, same = repeated(clips, number), repeated((expected,), number)[0]
        with torch.no_grad():
            found = program.module()(*more)
        torch.testing.assert_close(found, same, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHS)
def test_exported_to_onnx(name: str, tmp_path: Path) -> None:
    net, clips, expected = net_and_clips(name)
    path = tmp_path / "net.onnx"
    program = torch.onnx.export(
        net, clips, dynamo=True, verbose=False, dynamic_shapes=any_batch(clips)
    )
    assert program is not None
    program.save(path, external_data=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for number in (2, 3):
        more, same = repeated(clips, number), repeated((expected,), number)[0]
        inputs = {name: clip.numpy() for name, clip in zip(names, more, strict=True)}
        (found,) = session.run(None, inputs)
        torch.testing.assert_close(torch.from_numpy(found), same, atol=1e-3, rtol=1e-3)
