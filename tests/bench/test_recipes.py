"""Recipes: schedules, hashes, and what they name."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinetics_bench.archs.registry import ARCHS, Sampling
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.recipes import RECIPES, MultiStep, OneCycle, Recipe, recipe_for
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_tools.core.errors import EvaluationError, UnknownNameError
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
    assert recipe == SMALL_FLOW.with_batch_size(4).with_epochs(1)
    assert recipe.as_json() == stored


@pytest.mark.parametrize(("arch", "stream", "recipe"), ALL)
def test_json_tells_the_whole_recipe(arch: str, stream: str, recipe: Recipe) -> None:
    assert recipe.streams == ARCHS[arch].clips_of(stream)
    assert Recipe.from_json(json.loads(json.dumps(recipe.as_json()))) == recipe
    assert recipe.protocol in PROTOCOLS
    assert isinstance(recipe.schedule, OneCycle | MultiStep)


def test_another_batch_size_is_told_by_the_name() -> None:
    recipe = SMALL
    changed = recipe.with_batch_size(4)
    assert (changed.name, changed.batch_size, changed.micro_batch_size) == ("small+batch-4", 4, 4)
    assert changed.hash != recipe.hash
    assert recipe.with_batch_size(None) is recipe
    assert PAPER["rgb"].with_batch_size(12).micro_batch_size == 6


def test_another_number_of_epochs_is_told_by_the_name() -> None:
    changed = SMALL.with_batch_size(4).with_epochs(2)
    assert changed.name == "small+batch-4+epochs-2"
    assert isinstance(changed.schedule, OneCycle)
    assert (changed.schedule.epochs, changed.schedule.num_steps(9)) == (2, 18)
    assert changed.hash != SMALL.with_batch_size(4).hash
    assert SMALL.with_epochs(None) is SMALL.with_epochs(40) is SMALL
    with pytest.raises(EvaluationError, match="recipe paper counts steps: leave it out, or take"):
        PAPER["rgb"].with_epochs(2)
    assert PAPER["rgb"].with_epochs(None) is PAPER["rgb"]


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
    words = "recipe sample is for i3d, not for c3d; take --recipe paper or small"
    with pytest.raises(EvaluationError, match=words):
        recipe_for("sample", "c3d", "rgb")
