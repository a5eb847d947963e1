"""Checkpoints written by TensorFlow under the published names; `tox run -e tensorflow`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foreign import deepmind_shapes, deepmind_variables, randomize_batch_norm
from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import build
from kinetics_bench.weights import download
from kinetics_bench.weights.files import read
from kinetics_bench.weights.init import load_init
from kinetics_tools.core.errors import EvaluationError
from support import MediaServer, environment

pytestmark = pytest.mark.tensorflow


def save(variables: dict[str, Tensor], prefix: Path) -> None:
    """Write a checkpoint of named variables, as TensorFlow 1's Saver does."""
    import tensorflow

    prefix.parent.mkdir(exist_ok=True)
    tensorflow.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[tensorflow.constant(tensor.numpy()) for tensor in variables.values()],
    )


def logits(prefix: Path, stream: str, clips: Tensor) -> Tensor:
    """Logits of an I3D of five classes with the weights of a checkpoint."""
    start = load_init(
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
    net: Network = randomize_batch_norm(build("i3d", stream, num_classes=5))
    clips = torch.rand(1, 3 if stream == "rgb" else 2, 9, 32, 32) * 2 - 1
    save(deepmind_variables(net, scope), tmp_path / "model.ckpt")
    with torch.inference_mode():
        assert torch.equal(logits(tmp_path / "model.ckpt", stream, clips), net(clips))


def test_the_kinetics_600_checkpoint_with_optimizer_state(tmp_path: Path) -> None:
    net = randomize_batch_norm(build("i3d", num_classes=5))
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


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_checkpoint_by_tensorflow_is_accepted_as_the_authors(
    stream: str, media_server: MediaServer, tmp_path: Path
) -> None:
    """Downloaded files are checked by the format of the index and the size of the data."""
    shapes = deepmind_shapes(3 if stream == "rgb" else 2)
    folder = tmp_path / f"{stream}_imagenet"
    save({name: torch.rand(sizes) for name, sizes in shapes.items()}, folder / "model.ckpt")
    for path in folder.iterdir():
        media_server.put(f"{folder.name}/{path.name}", path)
    index = download.kinetics(stream, tmp_path / "cache", address=media_server.address)
    assert len(read(index, (), arch="i3d").state) == 230
    data = index.with_name(download.FILES[0])
    assert data.stat().st_size == download.MIN_DATA_BYTES[stream]


def test_checkpoints_of_objects_and_of_bfloat16_are_one_line(tmp_path: Path) -> None:
    import tensorflow

    kernel = tensorflow.Variable([1.0])
    prefix = tensorflow.train.Checkpoint(kernel=kernel).save(str(tmp_path / "objects"))
    words = r"unknown parameter names \(kernel/\.ATTRIBUTES/VARIABLE_VA"
    with pytest.raises(EvaluationError, match=words):
        read(Path(f"{prefix}.index"), (), arch="i3d")
    name = "Conv3d_1a_7x7/conv_3d/w"
    half = tensorflow.constant([1.0], tensorflow.bfloat16)
    tensorflow.raw_ops.SaveV2(
        prefix=str(tmp_path / "half"), tensor_names=[name], shape_and_slices=[""], tensors=[half]
    )
    with pytest.raises(EvaluationError, match=rf"{name} has dtype bfloat16; expected float32"):
        read(tmp_path / "half.index", (), arch="i3d")


LOAD = """
from pathlib import Path
from kinetics_bench.archs import build
from kinetics_bench.weights import load_init
prefix = Path(sys.argv[1])
build("i3d", num_classes=5)
load_init(str(prefix), arch="i3d", stream="rgb", num_classes=5, cache=prefix.parent / "cache")
"""
LOG = """
from pathlib import Path
from kinetics_bench.training.log import open_events
open_events(Path(sys.argv[1]).parent / "events", 1)
"""
STEP = """
import torch
net = torch.nn.Linear(2, 2)
torch.optim.SGD(net.parameters(), lr=0.1).step()
"""
FLOW = """
import numpy
from kinetics_tools import flow
flow.compute(numpy.zeros((2, 32, 32), numpy.uint8), backend="triton")
"""


@pytest.mark.parametrize(
    "code",
    [
        *(LOAD + STEP, LOG + STEP, LOAD + FLOW),
        *("import tensorflow" + LOAD + STEP, "import tensorflow" + FLOW + STEP),
        "import torch, tensorflow" + LOAD + STEP,
    ],
)
def test_tensorflow_and_triton_bear_each_other_in_either_order(code: str, tmp_path: Path) -> None:
    """Each contains LLVM; two of them aborted the interpreter at an optimizer's first step."""
    pytest.importorskip("triton")
    variables = deepmind_variables(build("i3d", num_classes=5), "RGB/inception_i3d/")
    save(variables, tmp_path / "model.ckpt")
    end = "assert {'tensorflow', 'triton'} <= sys.modules.keys()"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{end}", tmp_path / "model.ckpt"],
        capture_output=True,
        text=True,
        check=False,
        env=environment() | {"TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
