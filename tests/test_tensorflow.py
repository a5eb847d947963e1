"""Checkpoints that TensorFlow itself wrote, under the published names; `tox run -e tensorflow`."""

from pathlib import Path

import pytest
import torch
from foreign import deepmind_variables, shake
from torch import Tensor

from benchmarks.archs import build
from benchmarks.archs.network import Network
from benchmarks.weights.start import start_from
from kinetics_tools.errors import EvaluationError

pytestmark = pytest.mark.tensorflow


def save(variables: dict[str, Tensor], prefix: Path) -> None:
    """Write a checkpoint as TensorFlow 1's Saver does: by name."""
    import tensorflow

    prefix.parent.mkdir(exist_ok=True)
    tensorflow.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[tensorflow.constant(tensor.numpy()) for tensor in variables.values()],
    )


def logits(prefix: Path, stream: str, clips: Tensor) -> Tensor:
    """What an I3D of five classes that starts from a checkpoint makes of clips."""
    start = start_from(
        str(prefix), arch="i3d", stream=stream, num_classes=5, cache=prefix.parent / "cache"
    )
    assert start is not None
    net = build("i3d", stream, num_classes=5)
    start.load(net)
    with torch.inference_mode():
        out: Tensor = net.eval()(clips)
    return out


@pytest.mark.parametrize(
    ("stream", "scope"), [("rgb", "RGB/inception_i3d/"), ("flow", "Flow/inception_i3d/")]
)
def test_a_checkpoint_gives_identical_logits(stream: str, scope: str, tmp_path: Path) -> None:
    net: Network = shake(build("i3d", stream, num_classes=5))
    clips = torch.rand(1, 3 if stream == "rgb" else 2, 9, 32, 32) * 2 - 1
    save(deepmind_variables(net, scope), tmp_path / "model.ckpt")
    with torch.inference_mode():
        assert torch.equal(logits(tmp_path / "model.ckpt", stream, clips), net(clips))


def test_the_kinetics_600_form_with_the_optimizers_slots(tmp_path: Path) -> None:
    net = shake(build("i3d", num_classes=5))
    clips = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    bare = deepmind_variables(net, "")
    variables = {
        name: tensor.reshape(1, 1, 1, 1, -1) if "/batch_norm/" in name else tensor
        for name, tensor in bare.items()
    }
    slots = [name for name in bare if "/moving_" not in name]
    variables |= {f"{name}/Momentum": torch.zeros_like(variables[name]) for name in slots}
    variables["global_step"] = torch.tensor(115_000)
    save(variables, tmp_path / "model.ckpt")
    with torch.inference_mode():
        assert torch.equal(logits(tmp_path / "model.ckpt.index", "rgb", clips), net(clips))


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_a_damaged_checkpoint_is_one_line(suffix: str, how: str, tmp_path: Path) -> None:
    prefix = tmp_path / "model.ckpt"
    save(deepmind_variables(build("i3d", num_classes=5), "RGB/inception_i3d/"), prefix)
    path = tmp_path / f"model.ckpt.{suffix}"
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + (b"" if how == "truncated" else bytes(len(content) - half)))
    with pytest.raises(EvaluationError, match=r"model\.ckpt\.index cannot be read: ") as caught:
        logits(prefix, "rgb", torch.zeros(1, 3, 9, 32, 32))
    assert "\n" not in str(caught.value)
