"""From YAML, presets and KEY=VALUE to one checked recipe; every problem is reported at once.

Which value holds, from weakest to strongest:

1. the defaults of the schema;
2. recipe files, an included one before the file that includes it;
3. the preset of `method.name`, at the place where the name was set: a file or override that sets
   both the name and a key keeps its own key, a key of an earlier file gives way;
4. the block of that method under the top-level key `methods:` of the recipe files, for example
   `methods: {vanilla: {train.lr: 1e-3}}`;
5. overrides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from clmoe.errors import UsageError, did_you_mean
from clmoe.events import Note, emit
from clmoe.recipe.documents import (
    Documents,
    Layer,
    find_recipe,
    read_file,
    read_override,
    read_text,
    shipped_folder,
)
from clmoe.recipe.presets import PRESETS
from clmoe.recipe.schema import SECTIONS, Recipe

DEFAULT_RECIPE = "shapes"
PENALTIES = ("ewc", "mas")
_OVERRIDES = "override"


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A checked recipe and what it was made of.

    Attributes:
        recipe: The values.
        source_text: YAML that, with the overrides, gives the same recipe from any folder.
        overrides: KEY=VALUE, one for each key, relative paths made absolute.
        origins: Where each key that is not a default was set: a file, `preset vanilla`,
            `methods.vanilla` or `override`.
    """

    recipe: Recipe
    source_text: str
    overrides: tuple[str, ...]
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """A recipe of the package: its name and the first line of its comment."""

    name: str
    description: str


def load_recipe(source: str | Path | None, *, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Reads a shipped recipe (by name) or a file (by path) and applies the overrides.

    Args:
        source: A shipped recipe's name, a path, or None for the default `shapes`.
        overrides: KEY=VALUE, values read as YAML; the last of a key holds.

    Raises:
        UsageError: With every problem of the recipe and the overrides.
    """
    documents = Documents()
    path = find_recipe(source if source is not None else DEFAULT_RECIPE)
    read_file(path, into=documents)
    text = path.read_text(encoding="utf-8") if documents.verbatim else _as_text(documents.layers)
    return _resolve(documents, text=text, overrides=overrides, label=path.name)


def resolve_text(text: str, *, origin: str, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """The same from YAML text; relative includes and paths are taken from the working folder.

    Raises:
        UsageError: With every problem of the text and the overrides.
    """
    documents = Documents()
    read_text(text, origin=origin, folder=Path.cwd(), into=documents)
    if not documents.verbatim:
        text = _as_text(documents.layers)
    return _resolve(documents, text=text, overrides=overrides, label=Path(origin).name)


def shipped_recipes() -> list[ShippedRecipe]:
    """The recipes of the package, sorted by name."""
    found = []
    for path in sorted(shipped_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        found.append(ShippedRecipe(path.stem, first.lstrip("# ").strip()))
    return found


def _resolve(
    documents: Documents, *, text: str, overrides: Sequence[str], label: str
) -> ResolvedRecipe:
    given = dict(
        pair for item in overrides if (pair := read_override(item, into=documents)) is not None
    )
    values, origins = _merge(documents.layers, given)
    kind = values.get("strategy.kind")
    if kind in PENALTIES and "strategy.strength" not in values:
        documents.problems.append(
            f"strategy.strength is not set: how much {kind} holds depends on model and data, so it "
            "has no default; choose it on val, as `clmoe study rates` does"
        )
    recipe = _validate(values, problems=documents.problems, label=label)
    return ResolvedRecipe(
        recipe=_limit_top_k(recipe),
        source_text=text,
        overrides=tuple(f"{key}={_value_text(value)}" for key, value in given.items()),
        origins=origins,
    )


def _merge(layers: list[Layer], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that hold, and where each came from (the order is in the module's docstring)."""
    ordered = [*layers, Layer(origin=_OVERRIDES, values=given)]
    naming = [layer for layer in ordered if "method.name" in layer.values]
    method = str(naming[-1].values["method.name"]) if naming else "clmoe"
    preset = PRESETS[method].values if method in PRESETS else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def apply(new: Mapping[str, Any], origin: str) -> None:
        values.update(new)
        origins.update(dict.fromkeys(new, origin))

    for layer in ordered:
        if naming and layer is naming[-1]:
            apply(preset, f"preset {method}")
        if layer is ordered[-1]:
            for earlier in layers:
                apply(earlier.methods.get(method, {}), f"methods.{method}")
        apply(layer.values, layer.origin)
    return values, origins


def _validate(values: dict[str, Any], *, problems: list[str], label: str) -> Recipe:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, dot, field = key.partition(".")
        if dot:
            nested.setdefault(section, {})[field] = value
        else:
            nested[key] = value
    recipe = None
    found = list(problems)
    try:
        recipe = Recipe.model_validate(nested)
    except ValidationError as error:
        found += [_describe(detail) for detail in error.errors(include_url=False)]
    found = list(dict.fromkeys(found))
    if found or recipe is None:
        count = "a problem" if len(found) == 1 else f"{len(found)} problems"
        lines = "\n".join(f"  {problem}" for problem in found)
        raise UsageError(
            f"the recipe {label} has {count}:\n{lines}", hint="clmoe recipes explain KEY"
        )
    return recipe


def _describe(detail: ErrorDetails) -> str:
    """One line for one of pydantic's errors."""
    where = detail["loc"]
    if not where or (where[0] in SECTIONS and len(where) == 1):
        return detail["msg"]
    key = ".".join(str(part) for part in where[:2] if isinstance(part, str))
    value = detail["input"]
    if detail["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
        return (
            f"{key}: {value!r} is not one of {', '.join(options)}"
            f"{did_you_mean(str(value), options)}"
        )
    return f"{key}: {detail['msg'].replace('Input should be', 'must be')} (it is {value!r})"


def _limit_top_k(recipe: Recipe) -> Recipe:
    """K > n becomes n, with a warning; one expert is never routed, so there K means nothing."""
    experts = recipe.adapter.experts
    if recipe.route.top_k <= experts:
        return recipe
    if experts > 1:
        emit(
            Note(
                f"route.top_k {recipe.route.top_k} is more than adapter.experts {experts}: "
                f"{experts} is used",
                level="warning",
            )
        )
    route = recipe.route.model_copy(update={"top_k": experts})
    return recipe.model_copy(update={"route": route})


def _as_text(layers: list[Layer]) -> str:
    """The layers as YAML documents, the weakest first; reading them gives the layers again."""
    documents = []
    for layer in layers:
        content: dict[str, Any] = dict(layer.values)
        if layer.methods:
            content["methods"] = layer.methods
        dumped = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        documents.append(f"# from {layer.origin}\n{dumped}")
    return "---\n".join(documents)


def _value_text(value: Any) -> str:
    """A value as YAML on one line, as an override has it."""
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return dumped.removesuffix("\n").removesuffix("\n...")
