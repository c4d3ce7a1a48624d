"""What the schema says about each dotted key of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from clmoe.recipe.schema import SECTIONS, STAGES, Recipe, Section


@dataclass(frozen=True, slots=True)
class Key:
    """What the schema says about one dotted key.

    Attributes:
        name: Its dotted name.
        type: Its type, in words.
        default: Its default.
        help: What it does.
        symbol: The paper's symbol, or None.
        stages: The stages whose results it changes.
        neutral: The value at which it is in no fingerprint; ``...`` where there is none.
    """

    name: str
    type: str
    default: Any
    help: str
    symbol: str | None
    stages: tuple[str, ...]
    neutral: Any = ...


@lru_cache(maxsize=1)
def keys() -> dict[str, Key]:
    """Every key of a recipe by its dotted name, in the order of the schema."""
    found = {"name": _describe("name", Recipe, "name")}
    for section, model in SECTIONS.items():
        for field in model.model_fields:
            dotted = f"{section}.{field}"
            found[dotted] = _describe(dotted, model, field)
    return found


def stage_keys(stage: str) -> tuple[str, ...]:
    """The keys that declare a stage, in the order of the schema."""
    assert stage in STAGES
    return tuple(name for name, key in keys().items() if stage in key.stages)


def _describe(dotted: str, model: type[Section], field: str) -> Key:
    info = model.model_fields[field]
    extra = info.json_schema_extra
    assert isinstance(extra, dict)
    stages = extra["stages"]
    symbol = extra["symbol"]
    assert isinstance(stages, list)
    assert symbol is None or isinstance(symbol, str)
    return Key(
        name=dotted,
        type=_type_text(model.model_json_schema()["properties"][field]),
        default=info.default,
        help=info.description or "",
        symbol=symbol,
        stages=tuple(str(stage) for stage in stages),
        neutral=extra.get("neutral", ...),
    )


def _type_text(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words: `whole number or null`, `"ffn", "all-linear" or list`."""
    options = schema.get("anyOf", [schema])
    words: list[str] = []
    for option in options:
        if "enum" in option:
            words += [str(value) for value in option["enum"]]
        elif option.get("format") == "path":
            words.append("path")
        else:
            words.append(_JSON_TYPES[option.get("type", "string")])
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


_JSON_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
    "object": "mapping",
    "null": "null",
}
