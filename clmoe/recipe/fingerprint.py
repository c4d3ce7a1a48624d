"""Canonical JSON and its sha256, and the part of a recipe that a stage declares."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from clmoe.recipe.keys import keys, stage_keys
from clmoe.recipe.schema import Recipe

SHORT = 12


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: A number is not finite.
        TypeError: A value is not JSON.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def fingerprint(value: Any) -> str:
    """The sha256 of the value's canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def short(digest: str) -> str:
    """The first 12 digits, which name a version on disk."""
    return digest[:SHORT]


def recipe_part(recipe: Recipe, *, stage: str) -> dict[str, Any]:
    """The values of the keys that declare `stage`, as JSON holds them; none that is neutral."""
    flat = recipe.flat()
    return {key: flat[key] for key in stage_keys(stage) if flat[key] != keys()[key].neutral}
