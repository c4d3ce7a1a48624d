"""What a method's name stands for: values of other keys.

A name is in the fingerprint of the report alone, which prints it: two methods share every other
stage whose keys and inputs agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clmoe.recipe.schema import METHOD_NAMES


@dataclass(frozen=True, slots=True)
class Preset:
    """One method: what it is, and the keys that its name sets."""

    help: str
    values: Mapping[str, Any] = field(default_factory=dict)


_ONE_LORA: dict[str, Any] = {"adapter.experts": 1, "merge.rule": "none", "eval.beta": 1.0}

PRESETS: dict[str, Preset] = {
    "clmoe": Preset("momentum mixture of experts, instance and task routers (the full method)"),
    "vanilla": Preset("one LoRA tuned on task after task", _ONE_LORA),
    "multitask": Preset(
        "one LoRA tuned on all tasks at once (the upper bound)",
        {**_ONE_LORA, "protocol.joint": True},
    ),
    "mmoe": Preset("momentum merges, instance router alone (no task router)", {"eval.beta": 1.0}),
    "rmoe": Preset("both routers, no momentum merges", {"merge.rule": "none"}),
    "ema": Preset(
        "one LoRA with uniform momentum (Eq 10 with one expert)",
        {"adapter.experts": 1, "route.top_k": 1, "eval.beta": 1.0},
    ),
}
assert tuple(PRESETS) == METHOD_NAMES
