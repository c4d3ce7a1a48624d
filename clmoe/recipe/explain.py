"""What a key means and what changing it costs, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clmoe.errors import UsageError, did_you_mean
from clmoe.recipe.keys import keys
from clmoe.recipe.presets import PRESETS


@dataclass(frozen=True, slots=True)
class Explanation:
    """One key of a recipe.

    Attributes:
        key: Its dotted name.
        type: Its type, in words.
        default: Its default.
        help: What it does.
        symbol: Its symbol in the paper, or None.
        stages: The stages that become stale when it changes.
        effect: The same as a sentence.
        presets: The methods whose name sets it, with the value they set.
    """

    key: str
    type: str
    default: Any
    help: str
    symbol: str | None
    stages: tuple[str, ...]
    effect: str
    presets: dict[str, Any]


def explain(key: str) -> Explanation:
    """Explains a dotted key.

    Raises:
        UsageError: There is no such key; the message has the nearest one.
    """
    known = keys()
    if key not in known:
        raise UsageError(unknown_key(key), hint="clmoe recipes show shapes")
    found = known[key]
    effect = (
        f"changing it makes stale: {', '.join(found.stages)}, and what they change downstream"
        if found.stages
        else "changing it makes nothing stale"
    )
    return Explanation(
        key=key,
        type=found.type,
        default=found.default,
        help=found.help,
        symbol=found.symbol,
        stages=found.stages,
        effect=effect,
        presets={
            name: preset.values[key] for name, preset in PRESETS.items() if key in preset.values
        },
    )


def unknown_key(key: str) -> str:
    """The message for a key that does not exist, with the nearest that does."""
    known = keys()
    last = key.rsplit(".", 1)[-1]
    same_end = [name for name in known if name.rsplit(".", 1)[-1] == last]
    if same_end:
        return f"{key} is not a key of a recipe; did you mean {' or '.join(map(repr, same_end))}?"
    return f"{key} is not a key of a recipe{did_you_mean(key, known)}"
