"""Recipes: schedules, hashes, and what they name."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench.archs.registry import ARCHS, Sampling
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.recipes import (
    RECIPES,
    MultiStep,
    OneCycle,
    Plateau,
    Recipe,
    RecipeChoice,
    as_toml,
    parse_override,
    read_recipe_file,
    recipe_for,
)
from kinetics_bench.recipes.text import from_table
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_tools.core.errors import EvaluationError, KineticsError, UnknownNameError
from support import unpack_written_by_0_1

ALL = [
    pytest.param(arch, stream, recipe, id=f"{name}-{arch}-{stream}")
    for name, archs in RECIPES.items()
    for arch, streams in archs.items()
    for stream, recipe in streams.items()
]
SMALL = RECIPES["small"]["i3d"]["rgb"]
SMALL_FLOW = RECIPES["small"]["i3d"]["flow"]
PAPER = RECIPES["paper"]["i3d"]


@pytest.mark.parametrize("num_steps", [3, 40, 127])
def test_one_cycle_is_torchs(num_steps: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight])
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=num_steps, cycle_momentum=False
    )
    ours = OneCycle(epochs=1, peak_lr=1e-3)
    for step in range(num_steps):
        assert ours.lr(step, num_steps) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step < num_steps - 1:
            theirs.step()


def test_the_papers_step_decay() -> None:
    rgb, flow = PAPER["rgb"].schedule, PAPER["flow"].schedule
    assert [rgb.lr(step, 0) for step in (0, 96_999, 97_000, 108_000, 114_999)] == [
        *(0.1, 0.1, 0.01, 0.001, 0.001)
    ]
    assert [flow.lr(step, 0) for step in (104_500, 115_000, 140_000, 154_999)] == [
        *(0.001, 0.1, 0.01, 0.001)
    ]
    assert (rgb.num_steps(9), flow.num_steps(9)) == (115_000, 155_000)


def test_a_hash_follows_from_what_changes_a_weight() -> None:
    recipe = SMALL
    assert replace(recipe, name="other", source="elsewhere", protocol="paper").hash == recipe.hash
    assert replace(recipe, flip=0.0).hash != recipe.hash
    assert replace(recipe, sampling={"rgb": Sampling(16, 3)}).hash != recipe.hash
    assert replace(recipe, schedule=OneCycle(epochs=1, peak_lr=1e-3)).hash != recipe.hash


def test_training_and_testing_are_in_the_papers_section_2_5() -> None:
    sources = [each.source for arch in RECIPES["paper"].values() for each in arch.values()]
    for source in (*sources, PROTOCOLS["paper"].source):
        assert "2.5" in source
        assert not re.search(r"section 4|and 4\b", source)


# The first digits: results and checkpoints that were written with them stay comparable.
HASHES = {
    ("paper", "i3d", "rgb"): "7d8c4943538ae204",
    ("paper", "i3d", "flow"): "ed6bad202a5b4861",
    ("paper", "convnet-lstm", "rgb"): "a87604e396e02cf4",
    ("paper", "c3d", "rgb"): "a6e6c7c1b149d838",
    ("paper", "two-stream", "joint"): "0fe94b9747f153d5",
    ("paper", "two-stream", "rgb"): "4a82b3e903f7a424",
    ("paper", "two-stream", "flow"): "c4eb928fc0639fa4",
    ("paper", "3d-fused", "joint"): "105634f70b288fda",
    ("small", "i3d", "rgb"): "5c215d4d8496c483",
    ("small", "i3d", "flow"): "327e204571397fd5",
    ("small", "convnet-lstm", "rgb"): "5e519436bd573258",
    ("small", "c3d", "rgb"): "84af303b873aff34",
    ("small", "two-stream", "joint"): "d5d85d3f41066bff",
    ("small", "two-stream", "rgb"): "aad3547d32052538",
    ("small", "two-stream", "flow"): "d3681a62fceefb44",
    ("small", "3d-fused", "joint"): "a262b3f0437ee498",
    ("sample", "i3d", "rgb"): "aa006003bc708b4d",
    ("sample", "i3d", "flow"): "eb9e4f2c6f501423",
}


def test_the_hashes_are_those_of_version_0_1() -> None:
    found = {
        (name, arch, stream): recipe.hash[:16]
        for name, archs in RECIPES.items()
        for arch, streams in archs.items()
        for stream, recipe in streams.items()
    }
    assert found.items() >= HASHES.items()


def test_a_checkpoint_of_version_0_1_holds_a_recipe_that_reads(tmp_path: Path) -> None:
    name = "./run/flow/checkpoint.pt"
    unpack_written_by_0_1(tmp_path)
    stored = torch.load(tmp_path / name, weights_only=True)["recipe"]
    assert stored["pass_size"] == 4
    recipe = Checkpoint.read(tmp_path / name).recipe
    assert recipe == choice(batch_size=4, **{"schedule.epochs": 1}).recipe("i3d", "flow")
    assert recipe.as_json() == stored


@pytest.mark.parametrize(("arch", "stream", "recipe"), ALL)
def test_json_tells_the_whole_recipe(arch: str, stream: str, recipe: Recipe) -> None:
    assert recipe.streams == ARCHS[arch].clips_of(stream)
    assert Recipe.from_json(json.loads(json.dumps(recipe.as_json()))) == recipe
    assert recipe.protocol in PROTOCOLS
    assert isinstance(recipe.schedule, OneCycle | MultiStep | Plateau)


def choice(**overrides: Any) -> RecipeChoice:
    return RecipeChoice(name="small", overrides=overrides)


def test_another_batch_size_is_told_by_the_name() -> None:
    changed = choice(batch_size=4).recipe("i3d", "rgb")
    assert (changed.name, changed.batch_size, changed.micro_batch_size) == ("small+batch-4", 4, 4)
    assert changed.hash != SMALL.hash
    assert choice(batch_size=6).recipe("i3d", "rgb") == choice().recipe("i3d", "rgb") == SMALL
    paper = RecipeChoice(name="paper", overrides={"batch_size": 12}).recipe("i3d", "rgb")
    assert paper.micro_batch_size == 6


def test_values_that_differ_in_their_last_digit_have_other_words() -> None:
    def word(name: str, value: object) -> str:
        (found,) = RecipeChoice(name="paper", overrides={name: value}).words
        return found

    assert word("optimizer.lr", 5e-4) == "lr-0.0005"
    assert word("optimizer.lr", 0.0123456781) == "lr-0.0123456781"
    assert [word("optimizer.lr", each) for each in (1e16, 1e-16)] == ["lr-1e16", "lr-1e-16"]
    stones = [[[at, 1.0] for at in (*range(1, 20), end)] for end in (98, 99)]
    long = [word("schedule.milestones", each) for each in stones]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 80


def test_another_length_is_told_by_the_name() -> None:
    changed = choice(batch_size=4, **{"schedule.epochs": 2}).recipe("i3d", "rgb")
    assert changed.name == "small+batch-4+epochs-2"
    assert isinstance(changed.schedule, OneCycle)
    assert (changed.schedule.epochs, changed.schedule.num_steps(9)) == (2, 18)
    with pytest.raises(EvaluationError, match="recipe small: it counts epochs: give --epochs N"):
        choice(**{"schedule.steps": 2}).recipe("i3d", "rgb")
    paper = RecipeChoice(name="paper", overrides={"schedule.steps": 1150}).recipe("i3d", "rgb")
    assert paper.schedule == MultiStep(milestones=((970, 0.1), (1080, 0.01), (1150, 0.001)))
    assert paper.name == "paper+steps-1150"
    for overrides, words in (
        ({"schedule.epochs": 2}, "it counts steps: give --steps N"),
        ({"schedule.steps": 2}, "2 steps are too few for 3 milestones"),
    ):
        with pytest.raises(EvaluationError, match=words):
            RecipeChoice(name="paper", overrides=overrides).recipe("i3d", "rgb")


def test_a_learning_rate_moves_all_rates_in_proportion() -> None:
    given = RecipeChoice(name="paper", overrides={"optimizer.lr": 0.2}).recipe("i3d", "rgb")
    assert [lr for _, lr in given.schedule.milestones] == [0.2, 0.02, 0.002]  # type: ignore[attr-defined]
    assert given.name == "paper+lr-0.2"
    half = RecipeChoice(name="paper", overrides={"batch_size": 192}, scale_lr=True)
    scaled = half.recipe("i3d", "rgb")
    assert (scaled.schedule.base_lr, scaled.name) == (0.05, "paper+batch-192+scaled-lr")
    both = replace(half, overrides={"batch_size": 192, "optimizer.lr": 0.2})
    with pytest.raises(EvaluationError, match="--scale-lr and --lr each decide the rate"):
        both.recipe("i3d", "rgb")


def test_any_field_is_overridden_by_its_name_and_read_back() -> None:
    overrides = {
        "schedule.kind": "plateau",
        "schedule.steps": 50,
        "held_out": 0.2,
        "flip": 0,
        "optimizer.name": "sgd",
        "sampling.flow.num": 8,
        "protocol": "4x3",
    }
    rgb, flow = (choice(**overrides).recipe("i3d", stream) for stream in ("rgb", "flow"))
    assert rgb.schedule == Plateau(steps=50, start_lr=1e-3)
    assert (rgb.held_out, rgb.flip, rgb.optimizer, rgb.protocol) == (0.2, 0.0, "sgd", "4x3")
    assert (rgb.sampling["rgb"].num, flow.sampling["flow"].num) == (16, 8)
    assert flow.name.endswith("+sampling.flow.num-8+protocol-4x3")
    assert Recipe.from_json(json.loads(json.dumps(rgb.as_json()))) == rgb


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"optimizer.lrr": 1}, "unknown field of a recipe 'optimizer.lrr'. Did you mean 'optimi"),
        ({"optimizer.lr": "x"}, "recipe small: Expected float, got str at optimizer.lr"),
        ({"optimizer.lr": float("nan")}, "at optimizer.lr"),
        ({"optimizer.lr": -1}, ">= 0.0 at optimizer.lr"),
        ({"crop_px": 300}, "crop_px 300 exceeds short_side 128"),
        ({"dropout": 2}, "Expected float <= 1.0 at dropout"),
        ({"schedule": 3}, "schedule is a table of fields: give schedule.kind, schedule.epochs"),
        ({"optimizer": 1, "optimizer.lr": 2}, "optimizer is a table of fields: give optimizer.n"),
        ({"sampling.rgb": 3}, "sampling.rgb is a table of fields: give sampling.rgb.num, sampling"),
        ({"flip.x": 1, "flip": 1}, "unknown field of a recipe 'flip.x'"),
        ({"flip": 1, "flip.x": 1}, "unknown field of a recipe 'flip.x'"),
        ({"optimizer.weight_decay": -1}, "Expected float >= 0.0 at optimizer.weight_decay"),
        ({"sampling.rgb.num": 0}, "Expected int >= 1 at sampling.rgb.num"),
        ({"optimizer.name": 1}, "Expected str, got int at optimizer.name"),
        ({"protocol": 3}, "Expected str, got int at protocol"),
        ({"batch_size": True}, "Expected int, got bool at batch_size"),
        (
            {"optimizer.name": "adam"},
            "unknown optimizer 'adam'. Did you mean 'adamw'?",
        ),
        ({"schedule.epochs": -1}, "Expected int >= 1 at schedule.epochs"),
        ({"schedule.kind": "plateau"}, "missing required field steps at schedule"),
        ({"schedule.kind": "plato"}, "Did you mean 'plateau'"),
        ({"sampling.flow.num": 8}, "c3d takes rgb only"),
        ({"protocol": "hole"}, "Did you mean 'whole'"),
        ({"a.b.c": 1}, "unknown field"),
    ],
)
def test_a_field_that_cannot_be_is_one_line(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(KineticsError) as caught:
        RecipeChoice(name="small", overrides=overrides).recipe("c3d", "rgb")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("arch", "stream", "recipe"), ALL)
def test_a_recipe_as_toml_is_read_as_itself(
    arch: str, stream: str, recipe: Recipe, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(recipe))
    read = RecipeChoice(name=str(path), table=read_recipe_file(path)).recipe(arch, stream)
    assert read == recipe
    assert read.hash == recipe.hash


def test_a_file_says_what_differs_from_its_base(tmp_path: Path) -> None:
    path = tmp_path / "more epochs.toml"
    path.write_text('base = "small"\n[schedule]\nepochs = 60\n[optimizer]\nlr = 2e-3\n')
    made = RecipeChoice(name=str(path), table=read_recipe_file(path))
    flow = made.recipe("i3d", "flow")
    assert flow.schedule == OneCycle(epochs=60, peak_lr=2e-3)
    assert (flow.name, flow.source) == ("more-epochs", "more epochs.toml")
    assert flow.sampling == SMALL_FLOW.sampling
    assert made.recipe("c3d", "rgb").sampling == RECIPES["small"]["c3d"]["rgb"].sampling


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_size = ", "is not TOML"),
        ("batch_sizes = 4", "Did you mean 'batch_size'"),
        ('base = "smal"', "Did you mean 'small'"),
        ("batch_size = 4", "[sampling.rgb] is missing, which i3d needs"),
        ('base = "small"\ndropout = "a"', "got str at dropout"),
        (
            'base = "small"\noptimizer = 3',
            "optimizer is a table of fields: give optimizer.name, optimizer.lr, "
            "optimizer.weight_decay",
        ),
        ('base = "small"\nprotocol = 0x3', "Expected str, got int at protocol"),
        ('base = "small"\n[optimizer]\nweight_decay = -1', "0.0 at optimizer.weight_decay"),
        ('base = "small"\n[sampling.rgb]\nnum = "a"', "got str at sampling.rgb.num"),
        ('base = "small"\n[schedule]\nepoch = 3', "Did you mean 'schedule.epochs'"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(KineticsError) as caught:
        RecipeChoice(name=str(path), table=read_recipe_file(path)).recipe("i3d", "rgb")
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_overrides_are_written_as_in_toml() -> None:
    assert parse_override("optimizer.lr=1e-4") == ("optimizer.lr", 1e-4)
    assert parse_override(" optimizer.name = adamw ") == ("optimizer.name", "adamw")
    assert parse_override("schedule.milestones=[[3, 1.0]]") == (
        "schedule.milestones",
        [[3, 1.0]],
    )
    assert parse_override("protocol=10x3") == ("protocol", "10x3")
    assert parse_override("name='a b'") == ("name", "a b")
    for text in ("name", "source", "protocol", "optimizer.name", "schedule.kind"):
        for words in ("0x3", "1", "true", "1979-05-27", "a b"):  # those of text are no numbers
            assert parse_override(f"{text}={words}") == (text, words)
    assert parse_override("flip=0x1") == ("flip", 1)
    for text in ("lr", "=3", "lr=", "lr=[1", "lr=1\nx=2"):
        with pytest.raises(ValueError, match="is not"):
            parse_override(text)


@given(st.lists(st.floats(0.01, 10), max_size=60), st.integers(1, 4), st.integers(0, 3))
def test_a_plateau_is_torchs(losses: list[float], patience: int, drops: int) -> None:
    ours = Plateau(steps=100, start_lr=0.1, drops=drops, patience=patience)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience - 1, threshold=0.01, eps=0
    )
    for num in range(len(losses)):
        assert not ours.is_over(losses[:num])
        assert ours.lr(num, 100, losses[:num]) == pytest.approx(optimizer.param_groups[0]["lr"])
        theirs.step(losses[num])
        if optimizer.param_groups[0]["lr"] < 0.1 * 0.1**drops * 0.99:
            assert ours.is_over(losses[: num + 1])
            return


def test_unknown_recipes_are_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
        recipe_for("smal", "i3d", "rgb")


def test_every_network_has_the_papers_and_a_small_recipe() -> None:
    for name in ("paper", "small"):
        for arch, known in ARCHS.items():
            assert set(RECIPES[name][arch]) == set(known.networks)
            for stream in known.networks:
                recipe = recipe_for(name, arch, stream)
                if name == "paper":
                    assert recipe.crop_px == known.crop_px
                    assert recipe.sampling == {s: known.train[s] for s in known.clips_of(stream)}


def test_a_recipe_of_other_architectures_is_one_line_that_names_them() -> None:
    words = "recipe sample is for i3d, not for c3d; take --recipe paper or "
    words += "ucf101 or hmdb51 or fixed or small"
    with pytest.raises(EvaluationError, match=words):
        recipe_for("sample", "c3d", "rgb")


RATES = st.lists(st.decimals("0.0001", "9", places=4).map(float), min_size=1, max_size=4)


@given(RATES)
def test_any_rates_are_written_and_read_as_they_are(rates: list[float]) -> None:
    stones = tuple(enumerate(rates, start=1))
    recipe = replace(PAPER["rgb"], schedule=MultiStep(milestones=stones))
    assert from_table(tomllib.loads(as_toml(recipe))) == recipe
    other = RecipeChoice(name="paper", overrides={"name": "mine"}).recipe("i3d", "rgb")
    assert (other.name, other.hash) == ("mine", PAPER["rgb"].hash)
