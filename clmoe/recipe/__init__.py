"""Recipes: every value that decides a run, read from YAML and overridden by KEY=VALUE."""

from clmoe.recipe.explain import Explanation, explain
from clmoe.recipe.fingerprint import canonical_json, fingerprint, recipe_part, short
from clmoe.recipe.keys import Key, keys, stage_keys
from clmoe.recipe.load import (
    ResolvedRecipe,
    ShippedRecipe,
    load_recipe,
    resolve_text,
    shipped_recipes,
)
from clmoe.recipe.presets import PRESETS, Preset
from clmoe.recipe.schema import METHOD_NAMES, STAGES, Recipe

__all__ = [
    "METHOD_NAMES",
    "PRESETS",
    "STAGES",
    "Explanation",
    "Key",
    "Preset",
    "Recipe",
    "ResolvedRecipe",
    "ShippedRecipe",
    "canonical_json",
    "explain",
    "fingerprint",
    "keys",
    "load_recipe",
    "recipe_part",
    "resolve_text",
    "shipped_recipes",
    "short",
    "stage_keys",
]
