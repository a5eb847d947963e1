"""Published weights: every name, every shape, every way in which a file can be wrong."""

import hashlib
import os
import pickle
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import GoogLeNet, Hassony2, Piergiaj, deepmind_variables, shake
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.archs import build
from benchmarks.weights.schemes import SCHEMES, scheme_of, units
from benchmarks.weights.stored import Weights, find, read
from kinetics_tools.errors import EvaluationError

# SHA-256 of the lines "name [sizes]" of the 230 variables of the published RGB/imagenet checkpoint,
# sorted: read from its index file.
PUBLISHED_SHA256 = "129004fb8aa39f0f7e7bf1a84f833086d75a7ad13d080f0587ec149c6a7daf9d"
CLIP = torch.randn(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """An rgb I3D of five classes, with statistics as after training."""
    torch.manual_seed(0)
    return shake(build("i3d", num_classes=5))


def logits(net: nn.Module) -> Tensor:
    with torch.inference_mode():
        out: Tensor = net(CLIP)
    return out


def loaded(state: dict[str, Tensor]) -> nn.Module:
    """A fresh I3D of five classes with these weights, which must be all that it has."""
    fresh = build("i3d", num_classes=5)
    counts = {n: t for n, t in fresh.state_dict().items() if n.endswith(".num_batches_tracked")}
    fresh.load_state_dict(state | counts)
    return fresh.eval()


def read_rgb(path: Path, net: nn.Module) -> Weights:
    return read(path, net.state_dict().keys(), arch="i3d", stream="rgb")


def test_the_units_are_those_of_the_network(net: nn.Module) -> None:
    convs = [n for n in net.state_dict() if n.endswith("conv_3d.weight") and "Logits" not in n]
    assert [f"{unit.ours(3)}.conv_3d.weight" for unit in units()] == convs
    assert len(convs) == 57


def test_deepminds_names_and_shapes_are_those_of_the_published_index() -> None:
    variables = deepmind_variables(build("i3d"), "RGB/inception_i3d/")
    lines = sorted(f"{name} {list(tensor.shape)}\n" for name, tensor in variables.items())
    assert len(lines) == 230
    assert (
        "RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w [3, 3, 3, 32, 128]\n" in lines
    )
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == PUBLISHED_SHA256


@pytest.mark.parametrize(
    ("scheme", "theirs"),
    [("piergiaj", Piergiaj()), ("hassony2", Hassony2()), ("torchvision", GoogLeNet())],
)
def test_a_scheme_names_exactly_what_their_network_has(scheme: str, theirs: nn.Module) -> None:
    table = SCHEMES[scheme]
    state = theirs.state_dict()
    assert scheme_of(state) is table
    ours = table.to_ours(state)  # refuses a name too many or too few
    for name, tensor in table.from_ours(ours).items():
        assert torch.equal(tensor, state[name]), name
    if table.dims == 3:
        shapes = {n: t.shape for n, t in build("i3d").state_dict().items()}
        assert {n: t.shape for n, t in ours.items()} == {
            n: s for n, s in shapes.items() if not n.endswith(".num_batches_tracked")
        }


@pytest.mark.parametrize("scheme", ["deepmind", "piergiaj", "hassony2"])
def test_weights_written_and_read_under_a_scheme_give_identical_logits(
    scheme: str, net: nn.Module
) -> None:
    table = SCHEMES[scheme]
    state = {n: t for n, t in net.state_dict().items() if not n.endswith(".num_batches_tracked")}
    theirs = table.from_ours(state)
    assert theirs.keys().isdisjoint(state)
    assert torch.equal(logits(loaded(table.to_ours(theirs))), logits(net))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("scheme", ["piergiaj", "hassony2"])
def test_a_file_by_torch_save_is_read(
    scheme: str, legacy: bool, net: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "rgb_imagenet.pt"
    theirs = SCHEMES[scheme].from_ours(net.state_dict())
    torch.save(theirs, path, _use_new_zipfile_serialization=not legacy)
    weights = read_rgb(path, net)
    assert torch.equal(logits(loaded(dict(weights.state))), logits(net))
    assert (weights.source, weights.dims) == (str(path), 3)
    torch.save(net.state_dict(), path)
    assert read_rgb(path, net).sha256 == weights.sha256  # the same weights, whatever their names


def test_a_scale_that_is_not_one_is_kept_and_ones_are_dropped(net: nn.Module) -> None:
    theirs = SCHEMES["piergiaj"].from_ours(net.state_dict())
    assert not any(n.endswith(".scale") for n in SCHEMES["piergiaj"].to_ours(theirs))
    theirs["Mixed_3b.b1b.bn.weight"] = torch.linspace(0.5, 1.5, 128)
    state = SCHEMES["piergiaj"].to_ours(theirs)
    (name,) = (n for n in state if n.endswith(".scale"))
    assert name == "Mixed_3b.Branch_1.Conv3d_0b_3x3.batch_norm.scale"
    assert torch.equal(state[name], theirs["Mixed_3b.b1b.bn.weight"])
    assert torch.equal(
        SCHEMES["hassony2"].from_ours(state)["mixed_3b.branch_1.1.batch3d.weight"], state[name]
    )
    with pytest.raises(EvaluationError, match=r"kinetics-i3d has no name for Mixed_3b.*scale"):
        SCHEMES["deepmind"].from_ours(state)


def test_the_kinetics_600_checkpoint_is_read(net: nn.Module) -> None:
    """No scope, vectors of five axes, and the optimizer's slots."""
    bare = deepmind_variables(net, "")
    variables = {n: t if n.endswith("/w") else t.reshape(1, 1, 1, 1, -1) for n, t in bare.items()}
    variables["Logits/Conv3d_0c_1x1/conv_3d/b"] = bare["Logits/Conv3d_0c_1x1/conv_3d/b"]
    trained = [n for n in bare if not n.endswith(("moving_mean", "moving_variance"))]
    variables |= {f"{name}/Momentum": torch.zeros_like(bare[name]) for name in trained}
    assert len(variables) == 346
    scheme = scheme_of(variables)
    assert scheme is SCHEMES["deepmind"]
    assert torch.equal(logits(loaded(scheme.to_ours(variables))), logits(net))


def test_each_tensor_is_used_once_or_is_on_the_list(net: nn.Module) -> None:
    table = SCHEMES["hassony2"]
    theirs = table.from_ours(net.state_dict())
    count = {"mixed_3b.branch_0.batch3d.num_batches_tracked": torch.tensor(7)}
    assert table.to_ours(theirs | count).keys() == table.to_ours(theirs).keys()
    with pytest.raises(EvaluationError, match=r"^mixed_9z\.w has no place in Inception-v1 \(hasso"):
        table.to_ours(theirs | {"mixed_9z.w": torch.zeros(1)})
    del theirs["mixed_3b.branch_3.1.batch3d.running_var"]
    with pytest.raises(
        EvaluationError, match=r"^mixed_3b\.branch_3\.1\.batch3d\.running_var is mi"
    ):
        table.to_ours(theirs)
    twice = deepmind_variables(net, "RGB/inception_i3d/")
    twice |= deepmind_variables(net, "Flow/inception_i3d/")
    with pytest.raises(EvaluationError, match="is there twice, under two scopes"):
        SCHEMES["deepmind"].to_ours(twice)


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def bad_files(folder: Path, net: nn.Module) -> Iterator[tuple[Path, str]]:
    """Files that cannot be read, each with what the message must say."""
    state = net.state_dict()

    def save(name: str, value: object) -> Path:
        torch.save(value, folder / name)
        return folder / name

    good = save("good.pt", state)
    truncated = folder / "truncated.pt"
    truncated.write_bytes(good.read_bytes()[:1_000_000])
    yield truncated, "is truncated, or no file by torch.save"
    empty = folder / "empty.pt"
    empty.touch()
    yield empty, "is empty"
    text = folder / "text.pt"
    text.write_text("<html>404</html>")
    yield text, "is truncated, or no file by torch.save"
    yield (
        save("trap.pt", {"w": Trap(folder / "made")}),
        r"holds code \((posix|nt)\.mkdir\).*was not run",
    )
    yield save("net.pt", net), r"holds code \(benchmarks.archs.*Save a state dict"
    yield save("numbers.pt", {"a": 1}), "holds no state dict"
    yield save("list.pt", [1]), "holds no state dict"
    yield save("none.pt", {}), "holds no state dict"
    yield (
        save("resnet.pt", {"layer1.0.conv1.weight": state["Conv3d_1a_7x7.batch_norm.bias"]}),
        (r"names of no known scheme \(layer1\.0\.conv1\.weight \.\.\.\): .*hassony2"),
    )
    theirs = SCHEMES["piergiaj"].from_ours(state)
    theirs.pop("logits.conv3d.bias")
    yield save("short.pt", theirs), r"logits\.conv3d\.bias is missing \(piergiaj"
    checkpoint = {"net": state, "arch": "c3d", "stream": "rgb"}
    yield save("c3d.pt", checkpoint), "holds weights of c3d, stream rgb, not of i3d, stream rgb"
    index = folder / "model.ckpt.index"
    index.write_bytes(b"x")
    yield index, r"has no model\.ckpt\.data-00000-of-00001 beside it"


def test_bad_files_are_one_line_and_nothing_in_them_is_run(net: nn.Module, tmp_path: Path) -> None:
    for path, words in bad_files(tmp_path, net):
        with pytest.raises(EvaluationError) as caught:
            read_rgb(path, net)
        message = str(caught.value)
        assert message.startswith(str(path)), message
        assert re.search(words, message), message
        assert "\n" not in message
    assert not (tmp_path / "made").exists()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_is_one_line_or_harmless(data: st.DataObject) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.pt"
        torch.save(state, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
        good = path.read_bytes()
        at = data.draw(st.integers(0, len(good) - 1))
        cut = data.draw(st.booleans())
        byte = data.draw(st.binary(min_size=1, max_size=3))
        path.write_bytes(good[:at] if cut else good[:at] + byte + good[at + len(byte) :])
        try:
            weights = read(path, {"a", "b"}, arch="i3d", stream="rgb")
        except EvaluationError as error:
            assert "\n" not in str(error)
        else:
            assert weights.state


def test_a_plain_pickle_is_refused(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "rgb.pt"
    path.write_bytes(pickle.dumps({"w": Trap(tmp_path / "made")}))
    with pytest.raises(EvaluationError):
        read_rgb(path, net)
    assert not (tmp_path / "made").exists()


def test_weights_are_found_by_their_streams_name(tmp_path: Path) -> None:
    for name in (
        "flow/checkpoint.pt",
        "rgb_imagenet/model.ckpt.index",
        "rgb_imagenet/model.ckpt.data-00000-of-00001",
        "notes-rgb.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    index = tmp_path / "rgb_imagenet" / "model.ckpt.index"
    assert find(tmp_path, "rgb") == index
    assert find(tmp_path, "flow") == tmp_path / "flow" / "checkpoint.pt"
    assert find(index, "flow") == index
    assert find(index.with_suffix(""), "rgb") == index  # as TensorFlow names it
    (tmp_path / "rgb.pth").touch()
    with pytest.raises(EvaluationError, match=r"several files of rgb weights \(rgb\.pth, rgb_im"):
        find(tmp_path, "rgb")
    with pytest.raises(EvaluationError, match="is a folder without rgb weights"):
        find(tmp_path / "flow", "rgb")
    with pytest.raises(EvaluationError, match="nowhere is missing"):
        find(tmp_path / "nowhere", "rgb")
