"""The methods by the name of `strategy.kind`."""

from __future__ import annotations

from pathlib import Path

from clmoe.baselines.base import Strategy
from clmoe.baselines.penalties import EWC, MAS
from clmoe.baselines.replay import DER, DERPP, ER
from clmoe.baselines.vqacl import VQACL
from clmoe.baselines.vs import VS
from clmoe.recipe.schema import Strategy as Settings

STRATEGIES: dict[str, type[Strategy]] = {
    "none": Strategy,
    "ewc": EWC,
    "mas": MAS,
    "er": ER,
    "der": DER,
    "derpp": DERPP,
    "vs": VS,
    "vqacl": VQACL,
}


def make_strategy(settings: Settings, *, kept: Path | None) -> Strategy:
    """Return the method of a recipe with what it kept after the task before."""
    return STRATEGIES[settings.kind](settings, kept=kept)
