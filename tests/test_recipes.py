"""Recipes: schedules, hashes, and what they name."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.protocols import PROTOCOLS
from benchmarks.recipes import RECIPES, OneCycle, Recipe, Stairs, recipe_for
from kinetics_tools.errors import UnknownNameError

ALL = [recipe for streams in RECIPES.values() for recipe in streams.values()]


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


def test_the_papers_stairs() -> None:
    rgb, flow = RECIPES["paper"]["rgb"].schedule, RECIPES["paper"]["flow"].schedule
    assert [rgb.lr(step, 0) for step in (0, 96_999, 97_000, 108_000, 114_999)] == [
        *(0.1, 0.1, 0.01, 0.001, 0.001)
    ]
    assert [flow.lr(step, 0) for step in (104_500, 115_000, 140_000, 154_999)] == [
        *(0.001, 0.1, 0.01, 0.001)
    ]
    assert (rgb.num_steps(9), flow.num_steps(9)) == (115_000, 155_000)


def test_a_hash_follows_from_what_changes_a_weight() -> None:
    recipe = RECIPES["small"]["rgb"]
    assert replace(recipe, name="other", source="elsewhere", protocol="paper").hash == recipe.hash
    assert replace(recipe, flip=0.0).hash != recipe.hash
    assert replace(recipe, schedule=OneCycle(epochs=1, peak_lr=1e-3)).hash != recipe.hash


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_json_tells_the_whole_recipe(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.as_json()))) == recipe
    assert recipe.protocol in PROTOCOLS
    assert isinstance(recipe.schedule, OneCycle | Stairs)


def test_another_batch_size_is_told_by_the_name() -> None:
    recipe = RECIPES["small"]["rgb"]
    changed = recipe.with_batch_size(4)
    assert (changed.name, changed.batch_size, changed.pass_size) == ("small+batch-4", 4, 4)
    assert changed.hash != recipe.hash
    assert recipe.with_batch_size(None) is recipe
    assert RECIPES["paper"]["rgb"].with_batch_size(12).pass_size == 6


def test_unknown_recipes_are_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
        recipe_for("smal", "rgb")
