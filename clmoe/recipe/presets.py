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


def _strategy(kind: str) -> dict[str, Any]:
    return {**_ONE_LORA, "strategy.kind": kind}


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
    "moelora": Preset(
        "dense mixture tuned on task after task (what the released code does in effect)",
        {"merge.rule": "none", "eval.beta": 1.0},
    ),
    "pertask": Preset(
        "one LoRA a task, chosen by the task index (the strong simple baseline)",
        {**_ONE_LORA, "protocol.per_task": True},
    ),
    "ewc": Preset("one LoRA, important weights held by a Fisher penalty", _strategy("ewc")),
    "mas": Preset("one LoRA, important weights held by MAS's penalty", _strategy("mas")),
    "er": Preset("one LoRA, examples of earlier tasks replayed", _strategy("er")),
    "der": Preset("one LoRA, replayed examples keep their old logits", _strategy("der")),
    "derpp": Preset("der, and the replayed examples' answers", _strategy("derpp")),
    "vs": Preset("one LoRA, replay and backward-consistent features", _strategy("vs")),
    "vqacl": Preset("one LoRA, replay and prototypes as inputs", _strategy("vqacl")),
}
assert tuple(PRESETS) == METHOD_NAMES
