"""What an adapter folder says about itself, read without torch, PEFT or a model.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. Its tensors are, for each
adapted linear, `base_model.model.<linear>.clmoe_A.weight` [r, in] and `.clmoe_B.weight` [out, r],
and for each router `base_model.model.<holder>.clmoe_router.weight` [n, in]; whatever else is there
belongs to modules that are trained whole (`modules_to_save`), such as the projector.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clmoe.errors import ClmoeError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter's configuration.

    Attributes:
        experts: n.
        rank: Total rank r.
        alpha: The scaling is alpha / rank.
        targets: What was asked for: "ffn", "all-linear" or a list of patterns.
        routers: "per-block" or "per-linear".
        router_of: Adapted linear -> linear that holds its router, in natural order of the paths
            (layer 2 before layer 10). With one expert there are no routers, and the values only
            group the linears.
        modules_to_save: Modules saved whole beside the experts.
        base: Name of the base model, or None.
    """

    experts: int
    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    routers: str
    router_of: dict[str, str]
    modules_to_save: tuple[str, ...]
    base: str | None

    @property
    def router_names(self) -> tuple[str, ...]:
        """The routers (with one expert: the groups of linears), in natural order."""
        return tuple(natural_order(set(self.router_of.values())))


def a_key(linear: str) -> str:
    """Return the name of the stacked A [r, in] of a linear."""
    return f"{PREFIX}{linear}.clmoe_A.weight"


def b_key(linear: str) -> str:
    """Return the name of the stacked B [out, r] of a linear."""
    return f"{PREFIX}{linear}.clmoe_B.weight"


def router_key(router: str) -> str:
    """Return the name of a router's W_gate [n, in]."""
    return f"{PREFIX}{router}.clmoe_router.weight"


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names with the numbers in them compared as numbers."""
    return sorted(names, key=lambda name: [_part(part) for part in re.split(r"(\d+)", name)])


def read_adapter_info(directory: Path) -> AdapterInfo:
    """Read an adapter's configuration.

    Raises:
        ClmoeError: The file is missing, no JSON, of another method, or a field is missing.
    """
    path = Path(directory) / CONFIG_FILE
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClmoeError(f"{directory} holds no adapter: {CONFIG_FILE} is missing") from None
    except (ValueError, OSError) as error:
        raise ClmoeError(f"{path} cannot be read: {error}") from error
    kind = raw.get("peft_type") if isinstance(raw, dict) else None
    if kind != "CLMOE":
        raise ClmoeError(f"{path} is an adapter of the method {kind!r}, expected 'CLMOE'")
    try:
        targets = raw["targets"]
        return AdapterInfo(
            experts=int(raw["experts"]),
            rank=int(raw["r"]),
            alpha=float(raw["alpha"]),
            targets=targets if isinstance(targets, str) else tuple(targets),
            routers=str(raw["routers"]),
            router_of={name: raw["router_of"][name] for name in natural_order(raw["router_of"])},
            modules_to_save=tuple(raw.get("modules_to_save") or ()),
            base=raw.get("base_model_name_or_path"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ClmoeError(
            f"{path} is not a complete configuration: {type(error).__name__} {error}",
            hint="the folder was written by another version, or only in part",
        ) from error


def expected_shapes(info: AdapterInfo) -> dict[str, tuple[int | None, int | None]]:
    """Return every tensor an adapter must hold, with the sizes its configuration fixes.

    Sizes that only the base model knows are None. `modules_to_save` are not among them.
    """
    shapes: dict[str, tuple[int | None, int | None]] = {}
    for linear in info.router_of:
        shapes[a_key(linear)] = (info.rank, None)
        shapes[b_key(linear)] = (None, info.rank)
    for router in info.router_names if info.experts > 1 else ():
        shapes[router_key(router)] = (info.experts, None)
    return shapes


def _part(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (-1, text)
