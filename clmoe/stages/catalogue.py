"""What recipes there are, and what their keys mean."""

from __future__ import annotations

from dataclasses import asdict

from clmoe.recipe.explain import explain
from clmoe.recipe.load import load_recipe, shipped_recipes
from clmoe.stages.result import Result, Table


def recipes_list() -> Result:
    """List the recipes of the package."""
    found = shipped_recipes()
    return Result(
        command="recipes list",
        tables=(Table("", ["recipe", "what it is"], [[r.name, r.description] for r in found]),),
        data={"recipes": [asdict(r) for r in found]},
        next_command="clmoe recipes show shapes",
    )


def recipes_show(name: str) -> Result:
    """Show every key of a recipe: its value, and where it was set."""
    resolved = load_recipe(name)
    flat = resolved.recipe.flat()
    rows = [
        [key, _text(value), resolved.origins.get(key, "default")] for key, value in flat.items()
    ]
    return Result(
        command="recipes show",
        tables=(Table(name, ["key", "value", "set by"], rows),),
        data={"recipe": flat, "origins": dict(resolved.origins)},
        next_command=f"clmoe run {name} --dry-run",
    )


def recipes_explain(key: str) -> Result:
    """Explain one key of a recipe."""
    told = explain(key)
    rows = [
        ["type", told.type],
        ["default", _text(told.default)],
        ["what it is", told.help],
        ["in the paper", told.symbol or "-"],
        ["effect", told.effect],
    ]
    if told.presets:
        rows.append(["set by methods", ", ".join(f"{m}: {v}" for m, v in told.presets.items())])
    return Result(
        command="recipes explain",
        tables=(Table(key, ["", ""], rows),),
        data=asdict(told),
        next_command="clmoe recipes show shapes",
    )


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
