"""The command on a page is the one that made the run."""

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench.commands import evaluate, repeat, train
from kinetics_bench.commands.repeat import asked_of
from kinetics_bench.inference.networks import RUN, Request, read_request
from kinetics_bench.recipes import recipe_for
from kinetics_bench.training.checkpoint import Extension
from kinetics_tools.core.errors import KineticsError
from kinetics_tools.core.files import write_json

REQUEST = Request(
    arch="i3d",
    stream="joint",
    recipe="paper",
    data="/data/shards",
    train_split="train",
    test_split="val",
)


def commands(folder: Path) -> list[list[str]]:
    told = asked_of(folder)
    assert told is not None
    return [shlex.split(each) for each in told.commands]


def parsed(words: list[str], work_dir: Path) -> dict[str, Any]:
    """What a command asks for, under the names of the fields of a request."""
    is_evaluation = words[1] == "evaluate"
    parser = evaluate.parser() if is_evaluation else train.parser()
    values = vars(parser.parse_args(words[2 if is_evaluation else 1 :]))
    assert values["work_dir"] == work_dir
    if not is_evaluation:
        (values["seed"],) = values["seed"]
    plain = {name: text if text is None else str(text) for name, text in values.items()}
    lists = {"set": values.get("set", ()), "pretrained_on": values["pretrained_on"] or []}
    return plain | lists | {"classes": values["classes"]}


PATHS = st.sampled_from(["/data/a", "/data/with space", "/data/it's", "/data/$HOME;x"])
REQUESTS = st.builds(
    Request,
    arch=st.just("two-stream"),
    stream=st.sampled_from(["joint", "rgb", "flow"]),
    recipe=st.sampled_from(["paper", "small"]),
    data=PATHS | st.just("s3://bucket/shards"),
    train_split=PATHS | st.just("ucf101/2"),
    test_split=PATHS | st.just("ucf101/2"),
    flow=st.none() | st.just("tvl1"),
    protocol=st.none() | st.just("10x3"),
    overrides=st.dictionaries(
        st.sampled_from(["batch_size", "optimizer.lr", "schedule.milestones"]),
        st.integers(1, 99) | st.floats(1e-6, 9) | st.just([[3, 1.0], [9, 0.1]]),
        max_size=3,
    )
    | st.dictionaries(
        st.sampled_from(["protocol", "source"]), st.sampled_from(["10x3", "0x3", "a b's", "'"])
    ),
    scale_lr=st.booleans(),
    val_split=st.none() | PATHS,
    check_every=st.integers(0, 9),
    amp=st.sampled_from(["auto", "none", "bfloat16", "float16"]),
    checkpoint_every=st.sampled_from(["10min", "500"]),
    keep_checkpoints=st.integers(1, 9),
    checkpoint_activations=st.booleans(),
    sync_bn=st.booleans(),
    compile=st.booleans(),
    splits=st.none() | PATHS.map(Path),
    seed=st.integers(0, 9),
    num_workers=st.none() | st.integers(0, 9),
    init=st.sampled_from(["scratch", "imagenet", "kinetics", "/data/it's.pt:ema"]),
    finetune=st.sampled_from(["all", "last"]),
    cache_bytes=st.sampled_from([0, 50_000_000_000, 10**12]),
    classes=st.none() | st.just(("a",)) | st.just(("tying a bow", "it's")),
    min_coverage=st.floats(0, 1),
    allow_overlap=st.booleans(),
    pretrained_on=st.lists(PATHS | st.just("kinetics700/train"), max_size=2).map(tuple),
)


@given(REQUESTS)
def test_a_training_is_repeated_with_every_option(
    tmp_path_factory: pytest.TempPathFactory, wanted: Request
) -> None:
    run = tmp_path_factory.mktemp("a run's")
    write_json(run / RUN, wanted.as_json())
    (words,) = commands(run)
    found = parsed(words, run)
    checked = ("classes", "pretrained_on", "min_coverage")
    unasked = ("recipe_file", "best")  # the file is named; a training evaluates its last weights
    assert found["classes"] == (wanted.classes and ",".join(wanted.classes))
    assert tuple(found["pretrained_on"]) == wanted.pretrained_on
    assert float(found["min_coverage"] or 0) == wanted.min_coverage
    for name, value in wanted.as_json().items():
        option = {"num_workers": "workers", "check_every": "eval_every"}.get(name, name)
        if name == "overrides":
            assert dict(found["set"]) == value
        elif name not in (*unasked, *checked):
            assert found[option] == (None if value is None else str(value)), name


def grown(stream: str, *lengths: int) -> Any:
    """What a checkpoint says of a training of recipe `paper` that was made longer, at its ends."""
    first = recipe_for("paper", "i3d", stream)
    recipes = [first, *(replace(first, schedule=first.schedule.with_length(n)) for n in lengths)]
    extended = [Extension(step=r.schedule.length, epoch=9, recipe=r) for r in recipes[:-1]]
    return SimpleNamespace(stream=stream, recipe=recipes[-1], extended=extended)


@pytest.mark.parametrize(
    ("longer", "lines"),
    [
        (
            [grown("rgb", 160_000, 200_000), grown("flow", 160_000, 200_000)],
            ["--steps 160000", "--steps 200000"],
        ),
        (
            [grown("rgb", 130_000, 200_000), grown("flow", 200_000)],
            ["--steps 130000  # this was of rgb only", "--steps 200000"],
        ),
    ],
)
def test_two_networks_that_were_made_longer_begin_with_the_recipes_own_lengths(
    longer: list[Any], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeat, "_made_longer", lambda *_: longer)
    asked = replace(REQUEST, overrides={"dropout": 0.3, "schedule.steps": 200_000})
    write_json(tmp_path / RUN, asked.as_json())
    told = asked_of(tmp_path)
    assert told is not None
    assert "--set=dropout=0.3" in told.commands[0]
    assert "steps" not in told.commands[0]
    assert list(told.commands[1:]) == [f"run-benchmark resume {tmp_path} {line}" for line in lines]


def test_weights_are_evaluated_again(tmp_path: Path) -> None:
    given_weights = replace(REQUEST, train_split=None, init="/data/w.pt", test_split="test")
    write_json(tmp_path / RUN, given_weights.as_json())
    (words,) = commands(tmp_path)
    found = parsed(words, tmp_path)
    assert [found[name] for name in ("arch", "stream", "init", "data", "test_split")] == [
        *("i3d", "joint", "/data/w.pt", "/data/shards", "test")
    ]
    told = asked_of(tmp_path)
    assert told is not None
    assert told.seed is None


def test_another_evaluation_of_a_run_names_what_differs(tmp_path: Path) -> None:
    other = tmp_path / "evaluate-01234567"
    write_json(tmp_path / RUN, REQUEST.as_json())
    write_json(other / RUN, replace(REQUEST, test_split="test", protocol="10x3").as_json())
    training, again = commands(other)
    assert again == [
        *("run-benchmark", "evaluate", str(tmp_path)),
        *("--test-split", "test", "--protocol", "10x3"),
    ]
    assert [training] == commands(tmp_path)


def test_a_run_without_a_usable_request_has_no_command(tmp_path: Path) -> None:
    assert asked_of(tmp_path) is None
    (tmp_path / RUN).write_text("{}")
    assert asked_of(tmp_path) is None


def test_a_row_of_a_run_is_named_as_one(tmp_path: Path) -> None:
    write_json(tmp_path / RUN, REQUEST.as_json())
    (tmp_path / "rgb").mkdir()
    with pytest.raises(KineticsError, match=f"rgb is a row of a run, not a run; .*{tmp_path}$"):
        read_request(tmp_path / "rgb")
