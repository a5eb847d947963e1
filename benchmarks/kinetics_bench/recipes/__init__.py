"""Training recipes: every parameter that changes a weight, except the seed.

recipe = recipe_for("small", "i3d", "rgb")
print(as_toml(recipe))
table = read_recipe_file(Path("mine.toml"))
mine = RecipeChoice(name="mine.toml", table=table, overrides={"optimizer.lr": 1e-3})
recipe = mine.recipe("i3d", "rgb")
"""

from kinetics_bench.recipes.known import RECIPES, recipe_for
from kinetics_bench.recipes.recipe import Recipe
from kinetics_bench.recipes.schedules import MultiStep, OneCycle, Plateau, Schedule
from kinetics_bench.recipes.text import (
    LENGTH,
    RecipeChoice,
    as_toml,
    differing_fields,
    override_text,
    parse_override,
    read_recipe_file,
)

__all__ = [
    "LENGTH",
    "RECIPES",
    "MultiStep",
    "OneCycle",
    "Plateau",
    "Recipe",
    "RecipeChoice",
    "Schedule",
    "as_toml",
    "differing_fields",
    "override_text",
    "parse_override",
    "read_recipe_file",
    "recipe_for",
]
