"""Overrides that change no result, so that nobody takes two equal results for a finding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from clmoe.events import Note, emit
from clmoe.recipe.fingerprint import fingerprint
from clmoe.recipe.keys import keys
from clmoe.recipe.schema import Recipe
from clmoe.runs.identities import identities
from clmoe.runs.plan import Plan

STAND_INS = ("first", "second", "third")
_ORDER = "protocol.order"  # stand-ins have no order of their own


def tell_without_effect(
    recipe: Recipe, *, before: Recipe, overrides: Sequence[str], every_cell: bool = False
) -> None:
    """Warn of each override that no stage takes notice of.

    Args:
        recipe: The recipe with the overrides.
        before: The recipe without them, but with the method that they name.
        overrides: KEY=VALUE, the last of a key holds.
        every_cell: Whether tasks are asked that are not learned yet.
    """
    given = {item.partition("=")[0].strip(): item for item in overrides}
    for key, item in given.items():
        if not set(keys()[key].stages) - {"report"} or key == _ORDER:
            continue
        without = _with_value_of(before, key, recipe=recipe)
        if without == recipe:
            continue
        if _results(without, every_cell=every_cell) == _results(recipe, every_cell=every_cell):
            text = f"{item.strip()} changes nothing with these settings"
            emit(Note(f"{text} (method {recipe.method.name})", level="warning"))


def _with_value_of(other: Recipe, key: str, *, recipe: Recipe) -> Recipe:
    """The recipe with another recipe's value of one key."""
    section, _, field = key.partition(".")
    value = getattr(getattr(other, section), field)
    changed = getattr(recipe, section).model_copy(update={field: value})
    return recipe.model_copy(update={section: changed})


def _results(recipe: Recipe, *, every_cell: bool) -> dict[str, Any]:
    """What tells the results of a recipe apart, by the label of each node."""
    plan = Plan(recipe, STAND_INS)
    found: dict[str, Any] = dict(identities(plan))
    if every_cell:
        rows = product(range(1, len(STAND_INS) + 1), STAND_INS)
        cells = [plan.cell(place, task) for place, task in rows]
        found |= {f"part of {cell.label}": fingerprint(plan.part(cell)) for cell in cells}
    return found
