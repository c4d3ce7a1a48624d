"""Why a version is not the wanted one, in the words of a recipe: `train.lr 2e-4 -> 1e-4`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from clmoe.recipe.fingerprint import canonical_json, short
from clmoe.runs.base_identity import BaseIdentity
from clmoe.runs.manifest import InputRecord, Manifest
from clmoe.runs.plan import STAGE_VERSIONS, Node


def differences(
    node: Node,
    old: Manifest,
    *,
    part: Mapping[str, Any],
    inputs: Iterable[InputRecord],
    base: BaseIdentity | None,
    status_of: Callable[[str], str],
) -> list[str]:
    """What differs between a committed version and what is wanted now.

    Args:
        node: The node.
        old: The committed version.
        part: The part of the recipe that the node depends on now.
        inputs: The inputs it would read now, those that are known.
        base: The base model it would read now.
        status_of: The status of a node, by label.
    """
    reasons = [
        f"{key} {show(old.recipe.get(key))} -> {show(part.get(key))}"
        for key in dict.fromkeys((*part, *old.recipe))
        if canonical_json(old.recipe.get(key)) != canonical_json(part.get(key))
    ]
    version = STAGE_VERSIONS[node.stage]
    if old.stage_version != version:
        reasons.append(f"version of {node.stage} {old.stage_version} -> {version}")
    if base is not None and old.base is not None and old.base["digest"] != base.digest:
        was, now = _ends(old.base["digest"]), _ends(base.digest)
        reasons.append(f"base model {base.name} changed ({was} -> {now})")
    before = {item.role: item for item in old.inputs}
    wanted = {item.role: item for item in inputs}
    for role, item in wanted.items():
        if role not in before:
            reasons.append(f"{item.node} is new")
        elif before[role].sha256 != item.sha256:
            reasons.append(f"{item.node} changed")
    if node.stage == "report":
        reasons += [
            f"{item.node} is {status_of(item.node)}"
            for role, item in before.items()
            if role not in wanted
        ]
    return list(dict.fromkeys(reasons))


def show(value: Any) -> str:
    """A value as a person would write it in a recipe: `2e-4`, `128`, `a,b`, `null`."""
    if isinstance(value, bool) or value is None:
        return str(canonical_json(value))
    if isinstance(value, float):
        number = Decimal(repr(value)).normalize()
        plain, scientific = f"{number:f}", f"{number:e}".replace("e+", "e")
        return scientific if len(scientific) < len(plain) else plain
    if isinstance(value, list):
        return ",".join(show(item) for item in value)
    return value if isinstance(value, str) else str(canonical_json(value))


def _ends(digest: str) -> str:
    kind, _, rest = digest.partition(":")
    return short(rest) if kind == "sha256" else rest.rpartition("@")[2]
