"""Which keys of `strategy` each method uses; the others change nothing, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clmoe.recipe.schema import Strategy

_PENALTY = ("strength", "decay", "samples")
_REPLAY = ("memory", "policy")

USED: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "ewc": _PENALTY,
    "mas": _PENALTY,
    "er": _REPLAY,
    "der": (*_REPLAY, "alpha", "top_logits"),
    "derpp": (*_REPLAY, "alpha", "beta", "top_logits"),
    "vs": (*_REPLAY, "alpha", "beta", "margin"),
    "vqacl": (*_REPLAY, "question_momentum", "picture_momentum"),
}
"""Value of `strategy.kind` -> the other fields of the section that the method reads."""


def unused_defaults(kind: str) -> dict[str, Any]:
    """The keys that a method does not use, by dotted name, at their defaults."""
    defaults = Strategy().model_dump(mode="json", exclude={"kind", *USED[kind]})
    return {f"strategy.{field}": value for field, value in defaults.items()}
