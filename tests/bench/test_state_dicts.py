"""Weights of a network in what other trainers write."""

import contextlib
import json
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from foreign import randomize_batch_norm
from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import build
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_bench.weights.choices import split_word
from kinetics_bench.weights.files import Weights, read
from kinetics_bench.weights.init import InitWeights, load_init
from kinetics_bench.weights.naming import SCHEMES
from kinetics_tools.core.errors import EvaluationError

State = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def i3d() -> Network:
    torch.manual_seed(0)
    return randomize_batch_norm(build("i3d", num_classes=5))


@pytest.fixture
def net() -> nn.Module:
    """A small network, whose names are all that is known."""
    parts = {"stem": nn.Conv3d(3, 4, 1), "norm": nn.BatchNorm3d(4), "head": nn.Linear(4, 2)}
    return nn.Sequential(OrderedDict(parts))


def read_small(given: object, net: nn.Module) -> Weights:
    path, word = split_word(str(given))
    return read(path, net.state_dict().keys(), arch="i3d", word=word)


def compiled(net: nn.Module) -> nn.Module:
    module = torch.compile(net)
    assert isinstance(module, nn.Module)
    return module


def within(**modules: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module of a user, with the network as one of its parts."""
    whole = nn.Module()
    for name, module in modules.items():
        whole.add_module(name, module)
    return whole.state_dict()


WRAPPED: dict[str, Callable[[nn.Module], object]] = {
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled": lambda net: compiled(net).state_dict(),
    "compiled parts": lambda net: {
        name.replace("norm.", "norm._orig_mod."): tensor
        for name, tensor in net.state_dict().items()
    },
    "compiled, then DataParallel": lambda net: within(module=compiled(net)),
    "average": lambda net: AveragedModel(net).state_dict(),  # with the scalar n_averaged
    "model": lambda net: within(model=net),
    "backbone and a criterion": lambda net: within(backbone=net, criterion=nn.Linear(3, 2)),
    "backbone and a head of a known name": lambda net: {
        **within(backbone=net),
        **{f"head.fc.{name}": tensor for name, tensor in nn.Linear(3, 2).state_dict().items()},
    },
    "a head in another dict, and values that are no tensors": lambda net: {
        "model": {**net.state_dict(), "_extra_state": None, "decay": 0.9},
        "head": {"stem.weight": torch.zeros(2)},
    },
    "deep": lambda net: within(student=nn.ModuleDict({"encoder": nn.Sequential(net)})),
    "Lightning": lambda net: {
        "epoch": 3,
        "state_dict": OrderedDict(within(model=compiled(net))),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "rng": {"cpu": torch.zeros(2)},
    },
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_words_before_the_names_are_taken_off(
    wrapped: Callable[[nn.Module], object],
    net: nn.Module,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "w.pt"
    torch.save(net.state_dict(), path)
    want = read_small(path, net)
    assert caplog.text == ""
    torch.save(wrapped(net), path)
    got = read_small(path, net)
    assert got.sha256 == want.sha256
    assert got.source == str(path)


@pytest.mark.parametrize("scheme", [None, "piergiaj"])
def test_an_i3d_within_others_is_found(scheme: str | None, i3d: Network, tmp_path: Path) -> None:
    state = i3d.state_dict() if scheme is None else SCHEMES[scheme].from_ours(i3d.state_dict())
    path = tmp_path / "w.pt"
    torch.save(state, path)
    want = start(path)
    # Of the classifier's names one is known too, as GoogLeNet's.
    head = prefixed("module.cls_head.fc", nn.Linear(3, 2).state_dict())
    whole = prefixed("module._orig_mod.backbone", state) | head
    torch.save({"epoch": 3, "state_dict": whole, "optimizer": {"state": {0: {}}}}, path)
    assert start(path).sha256 == want.sha256


def start(path: Path) -> InitWeights:
    found = load_init(str(path), arch="i3d", stream="rgb", num_classes=5, cache=path.parent)
    assert found is not None
    return found


def test_the_log_says_what_was_taken(
    net: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "w.pt"
    torch.save({"state_dict": within(backbone=net, criterion=nn.Linear(3, 2))}, path)
    read_small(path, net)
    assert caplog.messages == [
        f"{path}: the weights state_dict; the words backbone are taken off all names; "
        "2 other tensors are not used, such as criterion.weight"
    ]


def average(state: State) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


def prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


STEPS = {"steps": torch.tensor(3)}
BOTH: dict[str, tuple[Callable[[State, State], object], str, str]] = {
    # what a file holds; the word for the weights, that for the average
    "timm": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "state_dict", "ema"),
    "two keys": (lambda a, b: {"model": a, "model_ema": b}, "model", "EMA"),
    "of mmengine": (
        lambda a, b: {"state_dict": a, "ema_state_dict": prefixed("module", b) | STEPS},
        "state_dict",
        "ema_state_dict",
    ),
    "nested": (
        lambda a, b: {"net": a, "ema": {"decay": 0.99, "shadow": b}},
        "net",
        "shadow",
    ),
    "one state dict": (
        lambda a, b: {"state_dict": prefixed("model", a) | prefixed("ema_model.module", b)},
        "model",
        "ema",
    ),
    "a module beside it": (
        lambda a, b: prefixed("model", a)
        | prefixed("ema.module", b)
        | {"ema.n_averaged": torch.tensor(3)},
        "model",
        "ema",
    ),
    "a callback": (
        lambda a, b: {
            "callbacks": {"EMA": {"decay": 0.9, "ema_weights": {"x": b}}},
            "state_dict": prefixed("net", a),
        },
        "state_dict",
        "ema",
    ),
    "a negation": (
        lambda a, b: {"model_without_ema": a, "model_ema": b},
        "model_without_ema",
        "ema",
    ),
    "without words": (lambda a, b: {**a, **prefixed("ema", b)}, "unwrapped", "ema"),
}  # fmt: skip


@pytest.mark.parametrize(("made", "word", "word_of_average"), BOTH.values(), ids=BOTH)
def test_an_average_beside_the_weights_is_chosen_by_a_word(
    made: Callable[[State, State], object],
    word: str,
    word_of_average: str,
    net: nn.Module,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    state, path = net.state_dict(), tmp_path / "w.pt"
    torch.save(average(state), path)
    digests = {word_of_average: read_small(path, net).sha256}
    torch.save(state, path)
    digests[word] = read_small(path, net).sha256
    torch.save(made(state, average(state)), path)

    with pytest.raises(EvaluationError, match=rf"^{path} holds the weights of several") as caught:
        read_small(path, net)
    assert f"such as {path}:" in str(caught.value)
    assert "\n" not in str(caught.value)
    for each, digest in digests.items():
        got = read_small(f"{path}:{each}", net)
        assert got.sha256 == digest, each
        assert got.source == f"{path}:{each}"
        assert "the weights " in caplog.messages[-1]
    with pytest.raises(EvaluationError, match="no weights that only the word 'other' means"):
        read_small(f"{path}:other", net)


def test_a_word_that_means_two_is_one_line(net: nn.Module, tmp_path: Path) -> None:
    state, path = net.state_dict(), tmp_path / "w.pt"
    torch.save({"ema_1": state, "ema_2": average(state)}, path)
    with pytest.raises(EvaluationError, match="only the word 'ema' means; it holds: ema_1, ema_2"):
        read_small(f"{path}:ema", net)
    torch.save(state, path)
    with pytest.raises(EvaluationError, match=r"'ema': it holds one network; .* without :ema"):
        read_small(f"{path}:ema", net)
    assert read_small(f"{path}:unwrapped", net).sha256 == read_small(path, net).sha256
    torch.save(prefixed("a", state) | prefixed("module.a", state), path)
    with pytest.raises(EvaluationError, match=r"^.*w.pt: stem.* is there twice"):
        read_small(path, net)


def test_a_word_is_only_what_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a:b").touch()
    (tmp_path / "model:c.index").touch()
    for given_, want in (
        ("w.pt:ema", (Path("w.pt"), "ema")),
        ("w.pt:state_dict.ema_model", (Path("w.pt"), "state_dict.ema_model")),
        ("folder/:ema", (Path("folder"), "ema")),
        (f"{tmp_path}/a:b", (tmp_path / "a:b", "")),
        (f"{tmp_path}/a:b:ema", (tmp_path / "a:b", "ema")),
        (f"{tmp_path}/model:c", (tmp_path / "model:c", "")),
        ("w.pt:0.999", (Path("w.pt"), "0.999")),
        ("w.pt", (Path("w.pt"), "")),
        ("w.pt:", (Path("w.pt:"), "")),
        (":ema", (Path(":ema"), "")),
        ("host:folder/w.pt", (Path("host:folder/w.pt"), "")),
    ):
        assert split_word(given_) == want


@pytest.mark.parametrize("scheme", [None, "piergiaj"])
def test_safetensors_are_read_as_what_torch_saves(
    scheme: str | None, i3d: Network, tmp_path: Path
) -> None:
    state = i3d.state_dict() if scheme is None else SCHEMES[scheme].from_ours(i3d.state_dict())
    (tmp_path / "rgb").mkdir()
    path = tmp_path / "rgb" / "model.safetensors"
    torch.save(state, tmp_path / "w.pt")
    want = start(tmp_path / "w.pt").sha256
    (tmp_path / "w.pt").unlink()
    safetensors.torch.save_file(prefixed("module.backbone", state), path)
    assert start(path).sha256 == want
    assert start(tmp_path).sha256 == want  # found in a folder
    for other in ("model.SAFETENSORS", "model.bin"):
        path = path.rename(path.with_name(other))
        assert start(path).sha256 == want
    path = path.rename(path.with_name("model.safetensors"))
    safetensors.torch.save_file({name: tensor.half() for name, tensor in state.items()}, path)
    assert {tensor.dtype for tensor in start(path).state.values()} == {torch.float32}


def test_weights_that_were_read_do_not_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3), "b": torch.ones(2)}, path)
    got = read(path, {"a", "b"}, arch="i3d")
    before = got.sha256
    with path.open("r+b") as file:
        file.seek(-20, 2)
        file.write(b"\x01" * 20)
    assert got.sha256 == before
    path.write_bytes(b"short")
    assert got.sha256 == before


@pytest.mark.parametrize("scheme", [None, "piergiaj"])
def test_a_backbone_without_a_last_layer_keeps_the_initial_one(
    scheme: str | None, i3d: Network, tmp_path: Path
) -> None:
    state = i3d.state_dict() if scheme is None else SCHEMES[scheme].from_ours(i3d.state_dict())
    path = tmp_path / "w.pt"
    headless = {name: each for name, each in state.items() if not name.lower().startswith("logits")}
    torch.save(prefixed("backbone", headless), path)
    got = start(path)
    assert got.warning == f"the last layer is re-initialised: {path} has none"
    assert len(got.state) == len([n for n in i3d.state_dict() if "num_batches" not in n]) - 2


def test_tensors_without_values_or_sparse_and_an_empty_word_are_one_line(
    net: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    state = net.state_dict()
    for value, words in (
        (state["head.weight"].to_sparse(), "head.weight is sparse; save dense tensors"),
        (state["head.weight"].to("meta"), "head.weight is without values; save dense tensors"),
    ):
        torch.save(state | {"head.weight": value}, path)
        with pytest.raises(EvaluationError, match=words):
            read_small(path, net)
    for init in ("kinetics", "imagenet", "scratch"):
        with pytest.raises(EvaluationError, match=f"--init {init} takes no word after a colon"):
            load_init(f"{init}:ema", arch="i3d", stream="rgb", num_classes=5, cache=tmp_path)
    for empty in ("", " "):
        with pytest.raises(EvaluationError, match="--init is empty; give scratch"):
            load_init(empty, arch="i3d", stream="rgb", num_classes=5, cache=tmp_path)


@settings(max_examples=200)
@given(place=st.integers(0, 2**20), cut=st.booleans(), new=st.binary(min_size=1, max_size=8))
def test_a_damaged_file_of_safetensors_is_one_line_or_harmless(
    place: int, cut: bool, new: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        safetensors.torch.save_file({"a": torch.arange(6.0), "b": torch.ones(3)}, path)
        good = path.read_bytes()
        at = place % len(good)
        path.write_bytes(good[:at] if cut else good[:at] + new + good[at + len(new) :])
        try:
            weights = read(path, {"a", "b"}, arch="i3d")
        except EvaluationError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
        else:
            assert weights.state


NAMES = {f"{part}.{what}" for part in ("stem", "block.conv", "head") for what in ("w", "b")}
WORDS = st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "x1"]), max_size=3)


@settings(max_examples=200)
@given(
    words=WORDS,
    keys=st.lists(st.sampled_from(["state_dict", "model", "k"]), max_size=2),
    others=st.dictionaries(st.sampled_from(["epoch", "lr", "opt"]), st.integers() | st.text()),
)
def test_whatever_is_around_them_the_weights_are_the_same(
    words: list[str], keys: list[str], others: dict[str, Any]
) -> None:
    state = {name: torch.full((2,), float(number)) for number, name in enumerate(sorted(NAMES))}
    values: Any = {".".join([*words, name]): tensor for name, tensor in state.items()}
    for key in keys:
        values = others | {key: values}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.pt"
        torch.save(values, path)
        got = read(path, NAMES, arch="i3d").state
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in state.items())


def shared(kind: str) -> object:
    """A small pickle of a value that has no end when it is written out."""
    if kind == "lists":
        values: Any = ["x"]
        for _ in range(40):
            values = [values, values]
        return values
    values = {"x": 1}
    for _ in range(5):
        values = {f"name{number}": values for number in range(100)}
    return values


@pytest.mark.parametrize("kind", ["lists", "dicts"])
@pytest.mark.parametrize("place", ["alone", "in a checkpoint of ours"])
def test_a_value_that_is_there_many_times_is_not_written_out(
    kind: str, place: str, net: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "laughs.pt"
    values = {"net": net.state_dict(), "more": shared(kind)}
    if place != "alone":
        values |= {"format": 2, "data": {"bound": shared(kind)}, "recipe": shared(kind)}
    torch.save(values, path)
    with contextlib.suppress(EvaluationError):
        read_small(path, net)
    with pytest.raises(EvaluationError):
        Checkpoint.read(path)


def test_what_torch_does_not_save_may_not_expand(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({**net.state_dict(), "zeros": torch.zeros(2**22)}, path)
    small = tmp_path / "small.pt"
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as made:
        for name in stored.namelist():
            made.writestr(name, stored.read(name))
    assert small.stat().st_size < 2**20
    with pytest.raises(EvaluationError, match="damaged or truncated"):
        read_small(small, net)


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "F6_E2M3"])
def test_a_dtype_that_torch_does_not_have_is_one_line(
    dtype: str, net: nn.Module, tmp_path: Path
) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(EvaluationError, match=r"w\.safetensors"):
        read_small(path, net)


def test_a_sparse_file_of_safetensors_is_not_read_whole(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.truncate(100 * 2**30)
    with pytest.raises(EvaluationError, match="damaged, or not a file of safetensors"):
        read_small(path, net)
