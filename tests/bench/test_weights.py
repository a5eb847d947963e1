"""Published weights: names, shapes, and files that cannot be used."""

import hashlib
import json
import math
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foreign import (
    GoogLeNet,
    Hassony2,
    Piergiaj,
    deepmind_shapes,
    deepmind_variables,
    randomize_batch_norm,
)
from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import build
from kinetics_bench.data.inputs import Crops, network_inputs
from kinetics_bench.recipes import OneCycle
from kinetics_bench.training.checkpoint import CHECKPOINT, InitRecord
from kinetics_bench.training.trainer import train
from kinetics_bench.weights import download, published_example
from kinetics_bench.weights.files import (
    Weights,
    find_weights,
    import_tensorflow,
    read,
)
from kinetics_bench.weights.init import (
    InitWeights,
    adapt_input_conv,
    last_layer_warning,
    load_init,
    network_state,
    state_shapes,
)
from kinetics_bench.weights.naming import SCHEMES, conv_units, scheme_of
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import digest
from kinetics_tools.dataset.labels import known_labels
from support import MediaServer, run_command
from tiny import key_file, tiny_shards
from trainings import CPU, RECIPE, job

# SHA-256 of the lines "name [sizes]" of the 230 variables of the published RGB/imagenet checkpoint,
# sorted: read from its index file.
PUBLISHED_SHA256 = "129004fb8aa39f0f7e7bf1a84f833086d75a7ad13d080f0587ec149c6a7daf9d"
CLIP = torch.randn(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


@pytest.fixture(scope="module")
def net() -> Network:
    """An rgb I3D of five classes with random statistics."""
    torch.manual_seed(0)
    return randomize_batch_norm(build("i3d", num_classes=5))


def logits(net: nn.Module) -> Tensor:
    with torch.inference_mode():
        out: Tensor = net(CLIP)
    return out


def loaded(state: dict[str, Tensor]) -> nn.Module:
    """An I3D of five classes with exactly these weights."""
    with torch.device("meta"):
        fresh = build("i3d", num_classes=5)
    counts = {name for name in fresh.state_dict() if name.endswith(".num_batches_tracked")}
    fresh.load_state_dict(state | {name: torch.tensor(0) for name in counts}, assign=True)
    return fresh.eval()


def read_rgb(path: Path, net: nn.Module) -> Weights:
    return read(path, net.state_dict().keys(), arch="i3d", stream="rgb")


def test_the_units_are_those_of_the_network(net: nn.Module) -> None:
    convs = [n for n in net.state_dict() if n.endswith("conv_3d.weight") and "Logits" not in n]
    assert [f"{unit.our_name(3)}.conv_3d.weight" for unit in conv_units()] == convs
    assert len(convs) == 57


def test_deepminds_names_and_shapes_are_those_of_the_published_index() -> None:
    with torch.device("meta"):
        net = build("i3d")
    variables = deepmind_variables(net, "RGB/inception_i3d/")
    ours = {name: tuple(tensor.shape) for name, tensor in variables.items()}
    by_hand = {f"RGB/inception_i3d/{name}": sizes for name, sizes in deepmind_shapes().items()}
    for shapes in (ours, by_hand):
        lines = sorted(f"{name} {list(sizes)}\n" for name, sizes in shapes.items())
        assert len(lines) == 230
        assert (
            "RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w [3, 3, 3, 32, 128]\n"
            in lines
        )
        assert hashlib.sha256("".join(lines).encode()).hexdigest() == PUBLISHED_SHA256


def distinct(theirs: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Give the named tensors values that all differ; return these tensors."""
    made: dict[str, Tensor] = {}
    first = 2  # a scale of ones is dropped
    for name in names:
        count = theirs[name].numel()
        made[name] = torch.arange(first, first + count).float().reshape(theirs[name].shape)
        first += count
    assert first < 2**24  # float32 represents all integers up to there
    theirs.update(made)
    return made


@pytest.mark.parametrize("scope", ["RGB/inception_i3d/", ""])
def test_deepminds_values_go_to_the_right_place(scope: str) -> None:
    """The expectation is written by hand, without the mapping's own tables."""
    with torch.device("meta"):
        net = build("i3d")
    theirs = {f"{scope}{name}": torch.zeros(sizes) for name, sizes in deepmind_shapes().items()}
    if not scope:  # of Kinetics-600, where vectors have the shape that they have in the graph
        theirs = {n: t.view(1, 1, 1, 1, -1) if t.ndim == 1 else t for n, t in theirs.items()}
    for unit, ours in (
        ("Conv3d_1a_7x7", "Conv3d_1a_7x7"),
        ("Mixed_3c/Branch_1/Conv3d_0b_3x3", "Mixed_3c.Branch_1.Conv3d_0b_3x3"),
        ("Mixed_5b/Branch_2/Conv3d_0a_3x3", "Mixed_5b.Branch_2.Conv3d_0a_3x3"),
        ("Mixed_5c/Branch_3/Conv3d_0b_1x1", "Mixed_5c.Branch_3.Conv3d_0b_1x1"),
    ):
        kernel, beta, mean, variance = (
            f"{scope}{unit}/conv_3d/w",
            f"{scope}{unit}/batch_norm/beta",
            f"{scope}{unit}/batch_norm/moving_mean",
            f"{scope}{unit}/batch_norm/moving_variance",
        )
        made = distinct(theirs, (kernel, beta, mean, variance))
        state = network_state(
            Weights(state=SCHEMES["deepmind"].to_ours(theirs), source="", dims=3), net
        )
        want = torch.einsum("thwio->oithw", made[kernel])
        assert torch.equal(state[f"{ours}.conv_3d.weight"], want)
        assert torch.equal(state[f"{ours}.batch_norm.bias"], made[beta].flatten())
        assert torch.equal(state[f"{ours}.batch_norm.running_mean"], made[mean].flatten())
        assert torch.equal(state[f"{ours}.batch_norm.running_var"], made[variance].flatten())
    logits = ("Logits/Conv3d_0c_1x1/conv_3d/w", "Logits/Conv3d_0c_1x1/conv_3d/b")
    made = distinct(theirs, [f"{scope}{name}" for name in logits])
    state = network_state(
        Weights(state=SCHEMES["deepmind"].to_ours(theirs), source="", dims=3), net
    )
    weight, bias = made.values()
    last = state["Logits.Conv3d_0c_1x1.conv_3d.weight"]
    assert last.shape == (400, 1024, 1, 1, 1)
    assert torch.equal(last[:, :, 0, 0, 0], weight[0, 0, 0].T)
    assert torch.equal(state["Logits.Conv3d_0c_1x1.conv_3d.bias"], bias.flatten())


@pytest.mark.parametrize(
    ("scheme", "theirs", "words", "units", "last"),
    [
        (
            *("piergiaj", Piergiaj, ("conv3d", "bn")),
            {
                "Conv3d_2c_3x3": "Conv3d_2c_3x3",
                "Mixed_5b.b2b": "Mixed_5b.Branch_2.Conv3d_0a_3x3",
                "Mixed_3b.b3b": "Mixed_3b.Branch_3.Conv3d_0b_1x1",
            },
            "logits.conv3d",
        ),
        (
            *("hassony2", Hassony2, ("conv3d", "batch3d")),
            {
                "conv3d_2c_3x3": "Conv3d_2c_3x3",
                "mixed_4e.branch_1.1": "Mixed_4e.Branch_1.Conv3d_0b_3x3",
                "mixed_4e.branch_3.1": "Mixed_4e.Branch_3.Conv3d_0b_1x1",
            },
            "conv3d_0c_1x1.conv3d",
        ),
        (
            *("torchvision", GoogLeNet, ("conv", "bn")),
            {
                "conv1": "Conv2d_1a_7x7",
                "inception4e.branch3.1": "Mixed_4f.Branch_2.Conv2d_0b_3x3",
                "inception5b.branch4.1": "Mixed_5c.Branch_3.Conv2d_0b_1x1",
            },
            "fc",
        ),
    ],
)
def test_values_of_the_other_schemes_go_to_the_right_place(
    scheme: str,
    theirs: type[nn.Module],
    words: tuple[str, str],
    units: dict[str, str],
    last: str,
) -> None:
    dims = SCHEMES[scheme].dims
    conv, norm = words
    pairs = {
        f"{last}.weight": f"Logits.Conv{dims}d_0c_1x1.conv_{dims}d.weight",
        f"{last}.bias": f"Logits.Conv{dims}d_0c_1x1.conv_{dims}d.bias",
    }
    for unit, ours in units.items():
        pairs[f"{unit}.{conv}.weight"] = f"{ours}.conv_{dims}d.weight"
        pairs[f"{unit}.{norm}.bias"] = f"{ours}.batch_norm.bias"
        pairs[f"{unit}.{norm}.running_mean"] = f"{ours}.batch_norm.running_mean"
        pairs[f"{unit}.{norm}.running_var"] = f"{ours}.batch_norm.running_var"
        pairs[f"{unit}.{norm}.weight"] = f"{ours}.batch_norm.scale"
    tensors = {name: torch.zeros(tensor.shape) for name, tensor in theirs().state_dict().items()}
    made = distinct(tensors, pairs)
    state = SCHEMES[scheme].to_ours(tensors)
    for name, ours in pairs.items():
        want = made[name][:, :, None, None] if name == "fc.weight" else made[name]
        assert torch.equal(state[ours], want), name


@pytest.mark.parametrize(
    ("scheme", "theirs"),
    [("piergiaj", Piergiaj), ("hassony2", Hassony2), ("torchvision", GoogLeNet)],
)
def test_a_scheme_names_exactly_what_their_network_has(
    scheme: str, theirs: type[nn.Module]
) -> None:
    table = SCHEMES[scheme]
    with torch.device("meta"):
        net, own = theirs(), build("i3d")
    # The value of each tensor is unique.
    state = {
        name: torch.full(tensor.shape, float(number + 2))
        for number, (name, tensor) in enumerate(net.state_dict().items())
    }
    assert scheme_of(state) is table
    ours = table.to_ours(state)  # refuses a name too many or too few
    for name, tensor in table.from_ours(ours).items():
        assert torch.equal(tensor, state[name]), name
    if table.dims == 3:
        assert {
            name: tuple(tensor.shape)
            for name, tensor in ours.items()
            if not name.endswith(".scale")
        } == state_shapes(own)


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
    """Without scope, with vectors of five axes and optimizer state."""
    bare = deepmind_variables(net, "")
    variables = {n: t if n.endswith("/w") else t.reshape(1, 1, 1, 1, -1) for n, t in bare.items()}
    variables["Logits/Conv3d_0c_1x1/conv_3d/b"] = bare["Logits/Conv3d_0c_1x1/conv_3d/b"]
    trained = [n for n in bare if not n.endswith(("moving_mean", "moving_variance"))]
    variables |= {f"{name}/Momentum": torch.zeros_like(bare[name]) for name in trained}
    assert len(variables) == 346
    scheme = scheme_of(variables)
    assert scheme is SCHEMES["deepmind"]
    assert torch.equal(logits(loaded(scheme.to_ours(variables))), logits(net))


def test_each_tensor_is_used_once_or_ignored_by_name(net: nn.Module) -> None:
    table = SCHEMES["hassony2"]
    theirs = table.from_ours(net.state_dict())
    count = {"mixed_3b.branch_0.batch3d.num_batches_tracked": torch.tensor(7)}
    assert table.to_ours(theirs | count).keys() == table.to_ours(theirs).keys()
    for name in (
        "mixed_9z.w",
        "mixed_9z.num_batches_tracked",
        "aux1.fc1.weight",  # which is GoogLeNet's
        "mixed_3b.branch_0.conv3d.weight/Momentum",  # TensorFlow's
    ):
        with pytest.raises(
            EvaluationError, match=rf"^{name} does not belong to Inception-v1 \(hasso"
        ):
            table.to_ours(theirs | {name: torch.zeros(1)})
    del theirs["mixed_3b.branch_3.1.batch3d.running_var"]
    with pytest.raises(
        EvaluationError, match=r"^mixed_3b\.branch_3\.1\.batch3d\.running_var is mi"
    ):
        table.to_ours(theirs)
    twice = deepmind_variables(net, "RGB/inception_i3d/")
    twice |= deepmind_variables(net, "Flow/inception_i3d/")
    with pytest.raises(EvaluationError, match="is there twice, under two scopes"):
        SCHEMES["deepmind"].to_ours(twice)
    with pytest.raises(EvaluationError, match=r"^nonsense/Momentum does not belong"):
        SCHEMES["deepmind"].to_ours({"nonsense/Momentum": torch.zeros(1)} | twice)
    with torch.device("meta"):
        flat = dict(GoogLeNet().state_dict())
    with pytest.raises(EvaluationError, match=r"^aux1\.foo does not belong"):
        SCHEMES["torchvision"].to_ours(flat | {"aux1.foo": torch.zeros(1)})


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def bad_files(folder: Path, net: nn.Module) -> Iterator[tuple[Path, str]]:
    """Files that cannot be read, each with its message."""
    state = net.state_dict()

    def save(name: str, value: object) -> Path:
        torch.save(value, folder / name)
        return folder / name

    good = save("good.pt", state)
    content = good.read_bytes()
    at = len(content) // 2  # in a weight: torch.load accepts any bytes there
    for name, left in (
        ("truncated.pt", content[:at]),
        ("flipped.pt", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]),
    ):
        (folder / name).write_bytes(left)
        yield folder / name, "is damaged or truncated; download or save it again$"
    old = folder / "old.pt"
    torch.save(state, old, _use_new_zipfile_serialization=False)
    os.truncate(old, 1_000_000)
    yield old, "is truncated, or torch.save did not write it"
    for protocol in (4, 5):
        plain = folder / f"plain-{protocol}.pt"
        plain.write_bytes(pickle.dumps({"w": Trap(folder / "made")}, protocol=protocol))
        yield plain, "is a pickle of protocol 4 or later.*was not run.*Save a state dict with torch"
    empty = folder / "empty.pt"
    empty.touch()
    yield empty, "is empty"
    text = folder / "text.pt"
    text.write_text("<html>404</html>")
    yield text, "is truncated, or torch.save did not write it"
    yield (
        save("trap.pt", {"w": Trap(folder / "made")}),
        r"contains code \((posix|nt)\.mkdir\).*was not run",
    )
    yield save("net.pt", net), r"contains code \(kinetics_bench.archs.*Save a state dict"
    yield save("numbers.pt", {"a": 1}), "holds no state dict"
    yield save("list.pt", [1]), "holds no state dict"
    yield save("none.pt", {}), "holds no state dict"
    yield (
        save("resnet.pt", {"layer1.0.conv1.weight": state["Conv3d_1a_7x7.batch_norm.bias"]}),
        (r"unknown parameter names \(layer1\.0\.conv1\.weight \.\.\.\): .*hassony2"),
    )
    theirs = SCHEMES["piergiaj"].from_ours(state)
    theirs.pop("logits.conv3d.bias")
    yield save("short.pt", theirs), r"logits\.conv3d\.bias is missing \(piergiaj"
    checkpoint = {"net": state, "arch": "c3d", "stream": "rgb"}
    yield save("c3d.pt", checkpoint), "holds weights of c3d, not of i3d"
    flow = checkpoint | {"arch": "i3d", "stream": "flow"}
    yield save("flow.pt", flow), "holds weights of i3d flow, not of i3d rgb; for both streams"
    index = folder / "model.ckpt.index"
    index.write_bytes(b"x")
    yield index, r"has no model\.ckpt\.data-00000-of-00001 beside it"


@pytest.mark.filterwarnings("error")
def test_bad_files_are_one_line_and_nothing_in_them_is_run(net: nn.Module, tmp_path: Path) -> None:
    for path, words in bad_files(tmp_path, net):
        with pytest.raises(EvaluationError) as caught:
            read_rgb(path, net)
        message = str(caught.value)
        assert message.startswith(str(path)), message
        assert re.search(words, message), message
        assert "\n" not in message
    assert not (tmp_path / "made").exists()


@settings(max_examples=200)
@given(st.booleans(), st.integers(0, 2**20), st.booleans(), st.binary(min_size=1, max_size=3))
def test_any_damage_is_one_line_or_harmless(
    as_zip: bool, place: int, cut: bool, new: bytes
) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.pt"
        torch.save(state, path, _use_new_zipfile_serialization=as_zip)
        good = path.read_bytes()
        at = place % len(good)  # the old format holds addresses, so its length varies
        path.write_bytes(good[:at] if cut else good[:at] + new + good[at + len(new) :])
        try:
            weights = read(path, {"a", "b"}, arch="i3d")
        except EvaluationError as error:
            assert "\n" not in str(error)
        else:
            assert weights.state


@pytest.mark.parametrize(
    "data",
    [
        *({"labels": 3}, {"labels": [1, "a"]}, {"labels": "ab"}, 3),
        {"flow": "tvl1", "bound": "20", "recipes": {"flow-tvl1": {}}},
        {"flow": "tvl1", "bound": 20.0, "recipes": {"flow-tvl1": {"hash": "0", "x": 1}}},
        {"flow": "tvl1", "bound": float("nan"), "recipes": {}},
        {"flow": ["tvl1"], "bound": -5.0, "recipes": 3},
        {
            "flow": "tvl1",
            "bound": 20.0,
            "recipes": {"flow-tvl1": {"hash": "0", "method": "a", "parameters": {}, "codec": "b"}},
        },
    ],
)
def test_a_state_dict_of_another_program_may_have_other_data_beside_it(
    data: object, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"net": {"a": torch.ones(3)}, "data": data}, path)
    assert read(path, {"a"}, arch="i3d").header is None  # not a checkpoint of ours

    ours = {"arch": "i3d", "stream": "flow", "net": {"a": torch.ones(3)}}
    torch.save(ours | {"data": data}, path)
    got = read(path, {"a"}, arch="i3d")
    assert got.state.keys() == {"a"}
    assert got.header is not None
    assert (got.header.labels, got.header.bound, got.header.flow) == (None, None, None)


def test_a_plain_pickle_is_refused(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "rgb.pt"
    path.write_bytes(pickle.dumps({"w": Trap(tmp_path / "made")}))
    with pytest.raises(EvaluationError):
        read_rgb(path, net)
    assert not (tmp_path / "made").exists()


def test_a_joint_checkpoint_cannot_initialise_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    net = {"rgb.Conv2d_1a_7x7.conv_2d.weight": torch.zeros(1)}
    torch.save({"net": net, "arch": "two-stream", "stream": "joint"}, path)
    with pytest.raises(EvaluationError) as caught:
        load_init(str(path), arch="two-stream", stream="rgb", num_classes=5, cache=tmp_path)
    words = "holds weights of two-stream joint, not of two-stream rgb"
    assert str(caught.value) == f"{path} {words}"


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
    assert find_weights(tmp_path, "rgb") == index
    assert find_weights(tmp_path, "flow") == tmp_path / "flow" / "checkpoint.pt"
    assert find_weights(index, "flow") == index
    assert find_weights(index.with_suffix(""), "rgb") == index  # as TensorFlow names it
    data = index.with_name("model.ckpt.data-00000-of-00001")
    assert find_weights(data, "rgb") == index  # the largest file of it, which users name
    assert find_weights(tmp_path / "flow", "flow") == tmp_path / "flow" / "checkpoint.pt"
    (tmp_path / "flow.pth").touch()
    with pytest.raises(
        EvaluationError,
        match=r"several files of flow weights \(flow\.pth, flow/.*; give one of them; for both "
        r"streams of i3d \(joint\) give a folder with one file per stream$",
    ):
        find_weights(tmp_path, "flow")
    index.unlink()
    with pytest.raises(
        EvaluationError, match=r"^.*model\.ckpt\.index is missing; model.*without it"
    ):
        find_weights(data, "rgb")
    with pytest.raises(EvaluationError, match="is a folder without rgb weights"):
        find_weights(tmp_path / "flow", "rgb")
    with pytest.raises(EvaluationError, match="nowhere is missing"):
        find_weights(tmp_path / "nowhere", "rgb")


@pytest.mark.parametrize(
    ("folder", "names", "taken"),
    [
        (
            "data/checkpoints",  # DeepMind's
            [
                f"{name}/model.ckpt{suffix}"
                for name in (
                    *("rgb_imagenet", "rgb_scratch", "rgb_scratch_kin600"),
                    *("flow_imagenet", "flow_scratch"),
                )
                for suffix in (".index", ".data-00000-of-00001")
            ],
            "{stream}_imagenet/model.ckpt.index",
        ),
        (
            "imagenet-models",  # piergiaj's, in a folder whose name has no stream
            [
                *("rgb_imagenet.pt", "rgb_charades.pt"),
                *("flow_imagenet.pt", "flow_charades.pt"),
            ],
            "{stream}_imagenet.pt",
        ),
    ],
)
def test_in_a_projects_own_folder_imagenets_weights_are_used(
    folder: str, names: list[str], taken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in names:
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for stream in ("rgb", "flow"):
        want = taken.format(stream=stream)
        assert find_weights(tmp_path / folder, stream) == tmp_path / folder / want
        assert (
            f"with {stream} weights the one with imagenet in its name is used, {want}"
            in caplog.text
        )
    (tmp_path / folder / "rgb-of-imagenet-too.pt").touch()
    with pytest.raises(EvaluationError, match="several files of rgb weights"):
        find_weights(tmp_path / folder, "rgb")


@pytest.fixture(scope="module")
def googlenet() -> GoogLeNet:
    """torchvision's network with TensorFlow's padding, and scales as training leaves them."""
    torch.manual_seed(1)
    net = GoogLeNet(pad=(2, 3))
    randomize_batch_norm(net)
    for name, tensor in net.state_dict().items():
        if name.endswith("bn.weight"):
            tensor.uniform_(0.8, 1.2)
    return net


def serve(server: MediaServer, net: nn.Module, folder: Path) -> str:
    """Serve a state dict as download.pytorch.org does; its address."""
    torch.save(net.state_dict(), folder / "googlenet.pth")
    content = (folder / "googlenet.pth").read_bytes()
    name = f"googlenet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.put(name, content)
    return f"{server.address}/{name}"


def test_imagenets_network_gives_googlenets_logits_on_our_input(
    googlenet: GoogLeNet, media_server: MediaServer, tmp_path: Path
) -> None:
    """Our input in [-1, 1] gives the logits of torchvision's normalised input."""
    address = serve(media_server, googlenet, tmp_path)
    weights = download.imagenet(tmp_path / "cache", address=address)
    ours = build("two-stream", "rgb", num_classes=1000).eval()
    state = network_state(weights, ours)
    InitWeights(state=state, source="", sha256="").load(ours)
    assert sum(name.endswith(".scale") for name in state) == 57
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    picture = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    crops = Crops({"rgb": torch.from_numpy(frames)[None]}, torch.tensor([False]), torch.ones(1, 2))
    (clip,) = network_inputs(crops, torch.device("cpu"))
    with torch.inference_mode():
        theirs = googlenet((picture - mean) / deviation)
        got = ours(clip)
    assert theirs.std() > 0.01
    torch.testing.assert_close(got, theirs, atol=1e-4, rtol=1e-3)
    # It is in the cache now and is not downloaded again.
    media_server.files.clear()
    assert download.imagenet(tmp_path / "cache", address=address).sha256 == weights.sha256
    assert len(media_server.requests) == 1


@pytest.mark.parametrize("channels", [2, 20])
def test_a_first_convolution_for_other_channels_keeps_the_size_of_its_sums(channels: int) -> None:
    kernel = torch.randn(4, 3, 7, 7, dtype=torch.float64)
    pictures = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    got = torch.conv2d(pictures.expand(-1, channels, -1, -1), adapt_input_conv(kernel, channels))
    torch.testing.assert_close(got, torch.conv2d(pictures.expand(-1, 3, -1, -1), kernel))
    assert adapt_input_conv(kernel, 3) is kernel


@pytest.mark.parametrize(
    ("arch", "stream"),
    [
        *(("i3d", "rgb"), ("i3d", "flow"), ("convnet-lstm", "rgb")),
        *(("two-stream", "joint"), ("3d-fused", "joint")),
    ],
)
def test_imagenet_goes_to_every_inception_of_an_architecture(
    arch: str, stream: str, googlenet: GoogLeNet
) -> None:
    weights = Weights(
        state=SCHEMES["torchvision"].to_ours(googlenet.state_dict()), source="it", dims=2
    )
    net = build(arch, stream, num_classes=4)
    initial = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = network_state(weights, net)
    InitWeights(state=state, source="it", sha256="").load(net)
    now = net.state_dict()
    same = {name for name in state if name in initial and torch.equal(now[name], initial[name])}
    assert not same
    num_parts = 2 if stream == "joint" else 1
    assert len(state) == num_parts * 57 * 5  # kernel, offset, mean, variance, scale; no logits
    has_logits = "Logits" in " ".join(net.last_layers)
    warning = "re-initialised: it has 1000 classes, this network 4"
    if not has_logits:
        warning = "of it is not used: this network has its own"
    assert warning in last_layer_warning(weights, net, state)
    for name, tensor in state.items():
        if name.endswith("conv_3d.weight"):  # inflated: the sum over time is the flat kernel
            flat = weights.state[name.replace("3d", "2d")]
            want = adapt_input_conv(flat, tensor.shape[1])
            torch.testing.assert_close(tensor.sum(dim=2), want, atol=1e-6, rtol=1e-5)


def test_weights_that_are_not_googlenets_are_one_line_before_they_are_reshaped(
    googlenet: GoogLeNet, tmp_path: Path
) -> None:
    path = tmp_path / "googlenet.pth"
    first = "Conv2d_1a_7x7.conv_2d.weight"
    inner = "Mixed_3b.Branch_1.Conv2d_0b_3x3.conv_2d.weight"
    state = dict(googlenet.state_dict())
    for change, words in (
        ({"conv1.conv.weight": torch.ones(64)}, rf"{first} is \(64,\) there, \(64, 3, 7, 7\)"),
        (
            {"conv1.conv.weight": torch.ones(64, 1, 7, 7)},
            rf"{first} takes 1 channels .*, 3 channels",
        ),
        ({"inception3a.branch2.1.conv.weight": torch.ones(128)}, rf"{inner} is \(128,\) there"),
        ({"fc.bias": torch.tensor(0.0)}, r"Logits\.Conv2d_0c_1x1\.conv_2d\.bias is \(\) there"),
    ):
        torch.save(state | change, path)
        for arch, stream in (("i3d", "rgb"), ("i3d", "flow"), ("two-stream", "joint")):
            with pytest.raises(EvaluationError, match=words) as caught:
                load_init(str(path), arch=arch, stream=stream, num_classes=1000, cache=tmp_path)
            assert str(caught.value).startswith(str(path))


def test_imagenet_weights_do_not_fit_c3d(
    googlenet: GoogLeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SCHEMES["torchvision"].to_ours(googlenet.state_dict())
    with torch.device("meta"):
        net = build("c3d")
    with pytest.raises(
        EvaluationError, match=r"^it has weights of Inception-v1, and 3D-ConvNet has no"
    ):
        network_state(Weights(state=state, source="it", dims=2), net)
    monkeypatch.delattr(download, "imagenet")  # the error comes before a download
    with pytest.raises(
        EvaluationError, match=r"^--init imagenet has weights of .* c3d has no Inception; .* PATH"
    ):
        load_init("imagenet", arch="c3d", stream="rgb", num_classes=4, cache=tmp_path)


def test_imagenet_that_cannot_be_fetched_is_one_line_and_leaves_no_file(
    googlenet: GoogLeNet,
    media_server: MediaServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = serve(media_server, googlenet, tmp_path)
    (name,) = media_server.files
    cache = tmp_path / "cache"
    half = f"{media_server.address}/half-of-{name}"
    gone = f"{media_server.address}/nothing-12345678.pth"
    other = f"{media_server.address}/other-12345678.pth"
    media_server.put("other-12345678.pth", b"something else")

    def kept() -> list[str]:
        return [path.name for path in cache.rglob("*") if path.is_file() and path.name[0] != "."]

    nobody = "http://127.0.0.1:9/googlenet-12345678.pth"
    for bad, words in (
        (half, "gave another file than its name says .*hash"),
        (other, "gave another file than its name says .*hash"),
        (gone, "cannot download .*404"),
        (nobody, "cannot download .*refused.*--init PATH"),
    ):
        with pytest.raises(EvaluationError, match=words) as caught:
            download.imagenet(cache, address=bad)
        assert "\n" not in str(caught.value)
        assert kept() == []
    download.imagenet(cache, address=address)
    assert kept() == [name]
    assert capsys.readouterr().out == ""  # which carries results only


def test_the_minimum_size_of_the_data_is_the_size_of_the_network() -> None:
    for stream, num_bytes in download.MIN_DATA_BYTES.items():
        with torch.device("meta"):
            shapes = state_shapes(build("i3d", stream))
        assert num_bytes == 4 * sum(math.prod(sizes) for sizes in shapes.values())


@pytest.fixture
def checkpoint(media_server: MediaServer) -> dict[str, bytes]:
    """Served files that look like the authors' flow checkpoint: name -> content."""
    data, index = download.FILES
    files = {
        f"flow_imagenet/{data}": bytes(download.MIN_DATA_BYTES["flow"]),
        f"flow_imagenet/{index}": b"an index, which ends in: " + download.TABLE_MAGIC,
    }
    for name, content in files.items():
        media_server.put(name, content)
        media_server.put(f"x/{name}", content)
    return files


def test_the_authors_checkpoint_is_fetched_once_and_whole(
    checkpoint: dict[str, bytes], media_server: MediaServer, tmp_path: Path
) -> None:
    half = f"{media_server.address}/half-of-x"
    with pytest.raises(EvaluationError, match=r"^cannot download .*IncompleteRead.*PATH") as caught:
        download.kinetics("flow", tmp_path, address=half, pauses_s=())
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if "ckpt" in path.name]
    index = download.kinetics("flow", tmp_path, address=media_server.address)
    assert index.name == "model.ckpt.index"
    assert find_weights(index.with_suffix(""), "flow") == index
    kept = {f"flow_imagenet/{path.name}": path.read_bytes() for path in index.parent.glob("model*")}
    assert kept == checkpoint
    media_server.requests.clear()
    assert download.kinetics("flow", tmp_path, address=media_server.address) == index
    assert media_server.requests == []


@pytest.mark.parametrize("at", [0, 1], ids=["data", "index"])
@pytest.mark.parametrize(
    "page", [b"<html>log in</html>", b"<!-- hotel --><html>log in</html>", b"{}"]
)
def test_a_page_in_place_of_the_authors_checkpoint_is_not_kept(
    at: int, page: bytes, checkpoint: dict[str, bytes], media_server: MediaServer, tmp_path: Path
) -> None:
    name = list(checkpoint)[at]
    media_server.put(name, page)
    with pytest.raises(
        EvaluationError, match=rf"^cannot download .*{name}.*; download it on"
    ) as caught:
        download.kinetics("flow", tmp_path, address=media_server.address, pauses_s=())
    assert "\n" not in str(caught.value)
    media_server.put(name, checkpoint[name])  # logged in
    index = download.kinetics("flow", tmp_path, address=media_server.address)
    assert index.read_bytes() == checkpoint[f"flow_imagenet/{index.name}"]


class Reader:
    """The reader of `tensorflow.train.load_checkpoint`, for a dict."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self.variables = variables

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        return {name: list(np.shape(value)) for name, value in self.variables.items()}

    def get_tensor(self, name: str) -> Any:
        return self.variables[name]


class OpError(Exception):
    """As TensorFlow's."""


def stand_in(patch: pytest.MonkeyPatch, load: Callable[[str], Reader]) -> None:
    """Replace TensorFlow, which these tests do not need, by a reader of dicts."""
    tensorflow = SimpleNamespace(
        train=SimpleNamespace(load_checkpoint=load), errors=SimpleNamespace(OpError=OpError)
    )
    patch.setitem(sys.modules, "tensorflow", tensorflow)


GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {GRAPH: b"\n\x08", "net/kernel/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(2, np.float32)},
            r": unknown parameter names \(net/kernel/\.ATTRIBUTES/VARIABLE_VALUE",
        ),
        (
            {"Conv3d_1a_7x7/conv_3d/w": b"text"},
            r": Conv3d_1a_7x7/conv_3d/w has dtype \|S4; expected float32",
        ),
        (
            {"Conv3d_1a_7x7/conv_3d/w": np.zeros(2, ml_dtypes.bfloat16)},
            ": Conv3d_1a_7x7/conv_3d/w has dtype bfloat16; expected float32",
        ),
    ],
    ids=["objects", "text", "bfloat16"],
)
def test_a_checkpoint_of_other_variables_is_one_line(
    variables: dict[str, object],
    words: str,
    net: Network,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    index = tmp_path / "model.ckpt.index"
    index.touch()
    (tmp_path / "model.ckpt.data-00000-of-00001").touch()
    stand_in(monkeypatch, lambda _: Reader(variables))
    with pytest.raises(EvaluationError, match=words) as caught:
        read_rgb(index, net)
    assert str(caught.value).startswith(str(index))
    assert "\n" not in str(caught.value)


def test_of_a_fetched_checkpoint_that_cannot_be_read_the_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "weights" / f"rgb_imagenet-{digest(download.KINETICS)[:8]}"
    folder.mkdir(parents=True)
    for name in download.FILES:
        (folder / name).write_bytes(b"kept by an older version")

    def load(prefix: str) -> Reader:
        raise OpError(f"Unable to open table file {prefix}\nand more")

    stand_in(monkeypatch, load)
    with pytest.raises(EvaluationError) as caught:
        load_init("kinetics", arch="i3d", stream="rgb", num_classes=5, cache=tmp_path)
    assert str(caught.value) == (
        f"{folder}/model.ckpt.index cannot be read: Unable to open table file {folder}/model.ckpt; "
        f"move {folder} away to download it again"
    )


def test_without_tensorflow_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    with pytest.raises(EvaluationError, match=r"not installed; .* with: pip install tensorflow$"):
        import_tensorflow("It")
    with pytest.raises(EvaluationError, match=r"^--init kinetics reads a TensorFlow checkpoint, "):
        load_init("kinetics", arch="i3d", stream="rgb", num_classes=4, cache=tmp_path)
    for arch, others in (
        ("c3d", "scratch or PATH"),
        ("convnet-lstm", "scratch, imagenet or PATH"),
    ):
        with pytest.raises(EvaluationError, match=rf"authors' i3d; for {arch} give {others}$"):
            load_init("kinetics", arch=arch, stream="rgb", num_classes=4, cache=tmp_path)


def start(path: Path, *, stream: str = "rgb", num_classes: int = 5) -> InitWeights:
    """Initial weights of an I3D from a file."""
    found = load_init(
        str(path), arch="i3d", stream=stream, num_classes=num_classes, cache=path.parent
    )
    assert found is not None
    return found


def test_other_classes_replace_the_last_layer_and_nothing_else(
    net: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rgb.pt"
    torch.save(net.state_dict(), path)
    whole = start(path)
    assert whole.warning == ""
    got = start(path, num_classes=7)
    assert got.warning == (
        f"the last layer is re-initialised: {path} has 5 classes, this network 7"
    )
    assert caplog.text == ""  # the training logs it
    assert set(whole.state) - set(got.state) == {
        "Logits.Conv3d_0c_1x1.conv_3d.weight",
        "Logits.Conv3d_0c_1x1.conv_3d.bias",
    }
    assert got.sha256 == whole.sha256
    fresh = build("i3d", num_classes=7)
    last = fresh.get_parameter("Logits.Conv3d_0c_1x1.conv_3d.weight").detach().clone()
    got.load(fresh)
    assert torch.equal(fresh.get_parameter("Logits.Conv3d_0c_1x1.conv_3d.weight"), last)
    features = fresh.eval().features(CLIP)
    assert torch.equal(features, net.features(CLIP))


def test_weights_that_do_not_fit_are_one_line(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = net.state_dict()

    def refused(change: dict[str, Tensor | None], words: str, *, stream: str = "rgb") -> None:
        changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        torch.save(changed, path)
        with pytest.raises(EvaluationError, match=words) as caught:
            start(path, stream=stream)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)

    first = "Conv3d_1a_7x7.conv_3d.weight"
    offset = "Mixed_3b.Branch_0.Conv3d_0a_1x1.batch_norm.bias"
    other = r"another stream: .* 3 channels \(rgb\) there, 2 channels \(flow\)"
    refused({}, rf"{other} here; for both streams .* one file per stream$", stream="flow")
    refused({first: None}, rf"lacks {first}: weights of another architecture")
    refused({"Mixed_6a.w": torch.ones(1)}, r"has Mixed_6a\.w, which this network lacks")
    refused({offset: torch.ones(3)}, rf"another architecture: {offset} is \(3,\) there, \(64,\)")
    refused({offset: torch.tensor(0.0)}, rf"{offset} is \(\) there, \(64,\) here")
    last = "Logits.Conv3d_0c_1x1.conv_3d.bias"
    refused({last: torch.tensor(0.0)}, rf"{last} is \(\) there, \(5,\) here")
    refused({offset: torch.ones(64, dtype=torch.int64)}, rf"{offset} has dtype int64, not a float")
    refused(
        {offset: torch.ones(64, dtype=torch.complex64)},
        rf"{offset} has dtype complex64, not a float",
    )
    refused({"a.num_batches_tracked": torch.tensor(0.0)}, r"has a\.num_batches_tracked, which this")
    refused({offset: torch.full((64,), torch.nan)}, rf"{offset} has NaN or infinite values")
    variance = offset.removesuffix("bias") + "running_var"
    refused({variance: torch.linspace(-1e-4, 1, 64)}, rf"{variance}: negative running variance")
    scale = offset.removesuffix("bias") + "scale"
    refused({scale: torch.ones(3)}, rf"{scale} is \(3,\) there, \(64,\) here")
    with pytest.raises(EvaluationError, match=r"Conv3d_1a_7x7\..* neither of this network"):
        load_init(str(path), arch="convnet-lstm", stream="rgb", num_classes=5, cache=tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_floats_become_float32(
    dtype: torch.dtype, net: Network, tmp_path: Path
) -> None:
    counts = {name for name in net.state_dict() if name.endswith(".num_batches_tracked")}
    state = {
        name: tensor if name in counts else tensor.to(dtype)
        for name, tensor in net.state_dict().items()
    }
    torch.save(state, tmp_path / "theirs.pt")
    torch.save({name: tensor.float() for name, tensor in state.items()}, tmp_path / "same.pt")
    got = start(tmp_path / "theirs.pt")
    assert {tensor.dtype for tensor in got.state.values()} == {torch.float32}
    assert got.sha256 == start(tmp_path / "same.pt").sha256


def test_part_of_the_weights_of_two_networks_is_one_line(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = dict(net.state_dict())
    some = {name if "Mixed_3b" in name else f"other.{name}": t for name, t in state.items()}
    torch.save(some, path)
    with pytest.raises(EvaluationError, match="lacks Mixed_3b"):
        start(path)
    torch.save({1: torch.zeros(1)}, path)
    with pytest.raises(EvaluationError, match="holds no state dict"):
        start(path)


ONE_EPOCH = replace(RECIPE, schedule=OneCycle(epochs=1, peak_lr=1e-2))


@pytest.mark.full
def test_finetuning_of_the_last_layer_changes_nothing_else(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "rgb.pt"
    scale = {"Mixed_3b.Branch_0.Conv3d_0a_1x1.batch_norm.scale": torch.linspace(0.9, 1.1, 64)}
    torch.save(net.state_dict() | scale, path)
    began = start(path, num_classes=2)
    last = job(tmp_path / "last", ONE_EPOCH, init=began, finetune="last")
    done = train(last, CPU)
    assert all(torch.equal(done.net[name], tensor) for name, tensor in began.state.items())
    changed = {name for name in done.net if name not in began.state} - {
        name for name in done.net if name.endswith(".num_batches_tracked")
    }
    assert changed == {
        "Logits.Conv3d_0c_1x1.conv_3d.weight",
        "Logits.Conv3d_0c_1x1.conv_3d.bias",
    }
    assert len(done.optimizer["state"]) == 2
    assert done.net["Logits.Conv3d_0c_1x1.conv_3d.bias"].abs().max() > 0  # it began at 0
    assert done.init == InitRecord(source=str(path), sha256=began.sha256, finetune="last")
    assert scale.keys() <= done.network().state_dict().keys()
    # All layers: offsets and statistics move too, the frozen scale does not.
    full = train(job(tmp_path / "all", ONE_EPOCH, init=began), CPU)
    still = {name for name, tensor in began.state.items() if torch.equal(full.net[name], tensor)}
    assert still == scale.keys()
    for other, what in (
        (job(tmp_path / "all", ONE_EPOCH), "init"),
        (job(tmp_path / "last", ONE_EPOCH, init=began), "finetune"),
    ):
        with pytest.raises(EvaluationError, match=rf"another training, not the same {what}"):
            train(other, CPU)
    # Our own checkpoint can be the initial weights too.
    again = start(tmp_path / "all" / CHECKPOINT, num_classes=2)
    assert set(again.state) == set(began.state) | changed


def example(nets: dict[str, Network], clips: dict[str, Tensor]) -> published_example.Example:
    """The logits of the networks, as a published example."""
    labels = [f"class {number}" for number in range(5)]
    with torch.inference_mode():
        logits = {stream: net(clips[stream])[0] for stream, net in nets.items()}
    logits["joint"] = logits["rgb"] + logits["flow"]
    streams = {}
    for stream, values in logits.items():
        order = values.argsort(descending=True).tolist()
        probabilities = values.softmax(dim=0).tolist()
        top = tuple((probabilities[at], float(values[at]), labels[at]) for at in order)
        streams[stream] = published_example.Expected(float(values.norm()), top)
    return published_example.Example((9, 32, 32), streams)


def test_verify_compares_every_number_with_the_expected(tmp_path: Path) -> None:
    torch.manual_seed(3)
    nets = {
        stream: randomize_batch_norm(build("i3d", stream, num_classes=5))
        for stream in ("rgb", "flow")
    }
    inputs = {"rgb": CLIP, "flow": CLIP[:, :2]}
    clips = {}
    for stream, net in nets.items():
        theirs = SCHEMES["piergiaj"].from_ours(net.state_dict())
        torch.save(theirs, tmp_path / f"{stream}_imagenet.pt")
        clips[stream] = tmp_path / f"{stream}.npy"
        np.save(clips[stream], inputs[stream].permute(0, 2, 3, 4, 1).numpy())
    expected = example(nets, inputs)
    labels = [f"class {number}" for number in range(5)]

    def verify(
        path: Path = tmp_path,
        example: published_example.Example = expected,
        streams: Sequence[str] = ("rgb", "flow"),
    ) -> list[published_example.Check]:
        given = {stream: clips[stream] for stream in streams}
        return published_example.verify(path, given, CPU, example=example, labels=labels)

    checks = verify()
    assert [check.stream for check in checks] == ["rgb"] * 6 + ["flow"] * 6 + ["joint"] * 6
    assert all(check.passed for check in checks)
    with pytest.raises(EvaluationError, match="of another number of classes: 5 there, 400 here"):
        published_example.verify(tmp_path, clips, CPU, example=expected)
    alone = verify(tmp_path / "flow_imagenet.pt", streams=["flow"])
    both = {"model": torch.load(tmp_path / "flow_imagenet.pt", weights_only=True)}
    both["ema"] = {name: 2 * tensor for name, tensor in both["model"].items()}
    torch.save(both, tmp_path / "best.pt")
    assert verify(tmp_path / "best.pt:model", streams=["flow"]) == alone
    (tmp_path / "best.pt").unlink()
    assert [check.stream for check in alone] == ["flow"] * 6
    # A file has one stream: the array of the other would not be checked.
    for streams in (["rgb"], ["rgb", "flow"]):
        with pytest.raises(EvaluationError, match="of flow alone: give --flow and no other array"):
            verify(tmp_path / "flow_imagenet.pt", streams=streams)
    # A small change of one weight is found.
    off = dict(expected.streams) | {"rgb": replace(expected.streams["rgb"], norm=0.0)}
    checks = verify(example=replace(expected, streams=off))
    assert [check.what for check in checks if not check.passed] == ["norm of all"]
    state = nets["rgb"].state_dict()
    state["Mixed_5c.Branch_0.Conv3d_0a_1x1.batch_norm.bias"] += 0.01
    torch.save(state, tmp_path / "rgb_imagenet.pt")
    checks = verify()
    assert all(check.passed for check in checks if check.stream == "flow")
    assert not all(check.passed for check in checks if check.stream == "rgb")
    assert published_example.worst(checks).stream in ("rgb", "joint")


def test_verify_of_another_network_is_one_line(
    net: Network, googlenet: GoogLeNet, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    first = "Conv3d_1a_7x7.conv_3d.weight"
    state = dict(net.state_dict())
    states = (
        googlenet.state_dict(),
        {name: tensor for name, tensor in state.items() if name != first},
        state | {first: torch.zeros(64)},
    )
    for each in states:
        torch.save(each, path)
        with pytest.raises(EvaluationError, match=rf"weights\.pth has no {first} of 5 axes"):
            published_example.verify(path, {"rgb": tmp_path / "rgb.npy"}, CPU)
    torch.save(state | {first: torch.zeros(64, 4, 7, 7, 7)}, path)
    with pytest.raises(EvaluationError, match="takes 4 channels: neither rgb nor flow"):
        published_example.verify(path, {"rgb": tmp_path / "rgb.npy"}, CPU)


def test_the_published_labels_are_kinetics() -> None:
    labels = known_labels("kinetics400")
    for expected in published_example.PUBLISHED.streams.values():
        assert {label for _, _, label in expected.top} <= set(labels)
        shares, values, _ = zip(*expected.top, strict=True)
        assert list(values) == sorted(values, reverse=True)
        # Probabilities are those of the logits: their ratios, to the digits that were printed.
        for share, value in zip(shares, values, strict=True):
            ratio = np.exp(np.float64(value) - values[0])
            assert share / shares[0] == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read as .npy"),
        (
            lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 a picture"),
            r"rgb\.npy cannot be read as .npy of numbers; give the published rgb array$",
        ),
        (lambda path: path.write_bytes(b"PK\x03\x04 a zip file"), "cannot be read as .npy"),
        (lambda path: np.save(path, np.zeros((1, 9, 32, 32, 2), np.float32)), r"is float32 \(1, 9"),
        (lambda path: np.save(path, np.full((1, 79, 224, 224, 3), 2, np.float32)), "outside"),
        (lambda path: np.save(path, np.zeros((1, 79, 224, 224, 3), np.uint8)), "is uint8"),
        (lambda path: np.save(path, np.array([Trap(path)]), allow_pickle=True), "cannot be read"),
    ],
)
def test_arrays_that_are_not_the_examples_are_one_line(
    made: Callable[[Path], object], words: str, net: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "rgb.npy"
    made(path)
    torch.save(net.state_dict(), tmp_path / "rgb.pt")
    done = run_command("run-benchmark", "verify-weights", tmp_path / "rgb.pt", "--rgb", path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {path} ")
    assert re.search(words, line)


@pytest.mark.full
def test_the_command_says_that_random_weights_are_not_the_published_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    for stream, channels in (("rgb", 3), ("flow", 2)):
        torch.save(build("i3d", stream).state_dict(), tmp_path / f"{stream}.pt")
        clip = random.uniform(-1, 1, (1, 79, 224, 224, channels)).astype(np.float32)
        np.save(tmp_path / f"{stream}.npy", clip)
    words = ("--rgb", tmp_path / "rgb.npy", "--flow", tmp_path / "flow.npy", "--device", "cpu")
    done = run_command("run-benchmark", "verify-weights", tmp_path, *words)
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 3 * 7 + 1
    assert all(line.endswith("differs") for line in lines[1:-1])
    last = re.fullmatch(
        r"0 of 21 numbers agree within 0\.001; .* is ([\d.]+) \(joint, .*\)", lines[-1]
    )
    assert last is not None, lines[-1]
    assert float(last[1]) > 30  # from the joint norm of 138, or its first logit of 42


@pytest.mark.full
def test_a_run_from_weights_to_a_result(tmp_path: Path) -> None:
    """A folder has a file for each stream; a run's work-dir is such a folder."""
    for stream in ("rgb", "flow"):
        state = randomize_batch_norm(build("i3d", stream, num_classes=5)).state_dict()
        torch.save(SCHEMES["hassony2"].from_ours(state), tmp_path / f"model_{stream}.pth")
    keys = (
        *("--train-split", key_file(tmp_path, "train.txt", "ann_*", "ben_*")),
        *("--test-split", key_file(tmp_path, "test.txt", "dan_*")),
    )
    words = ("--arch", "i3d", "--recipe", "sample", "--data", tiny_shards(), *keys)
    first = (*words, "--init", tmp_path, "--work-dir", tmp_path / "first", "--finetune", "last")
    done = run_command("run-benchmark", *first)
    assert done.returncode == 0, done.stderr
    for stream in ("rgb", "flow"):
        warning = f"{stream}: the last layer is re-initialised: {tmp_path}/model_{stream}"
        assert done.stderr.count(warning) == 1
    again = run_command("run-benchmark", *first)
    assert "rgb: reused, trained already" in again.stderr
    second = (*words, "--init", tmp_path / "first", "--stream", "flow")
    done = run_command("run-benchmark", *second, "--work-dir", tmp_path / "second")
    assert done.returncode == 0, done.stderr
    assert "re-initialised" not in done.stderr
    result = json.loads((tmp_path / "second" / "flow" / "result.json").read_text())
    assert result["data"]["init"]["source"] == str(tmp_path / "first" / "flow" / CHECKPOINT)
    other = run_command(
        "run-benchmark", *words, "--stream", "flow", "--work-dir", tmp_path / "second"
    )
    assert other.returncode == 2
    assert "another training, not the same init" in other.stderr
