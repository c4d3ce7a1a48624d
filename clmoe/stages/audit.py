"""Auditing one adapter, two, or the three of a merge: tables and sentences of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmoe.errors import UsageError
from clmoe.reporting.tables import DASH, Table
from clmoe.stages.result import Result

if TYPE_CHECKING:
    from clmoe.interop.audit import Comparison, Description
    from clmoe.interop.audit_merge import Fit, MergeAudit
    from clmoe.interop.opened import OpenedAdapter

ROUTERS_SHOWN = 12
"""Routers in the table of lambdas; --json has all."""


def audit(folders: Sequence[Path]) -> Result:
    """Say what one adapter holds, how two differ, or what a merge did; nothing is written.

    Args:
        folders: An adapter; or two; or theta_{t-1}, phi_t and the merged adapter.

    Raises:
        UsageError: There are none, or more than three.
        ClmoeError: A folder is no adapter, or they are of different sizes or bases.
    """
    if not 1 <= len(folders) <= 3:
        raise UsageError(
            f"an audit takes one, two or three adapters, not {len(folders)}",
            hint="clmoe audit THETA_BEFORE PHI MERGED",
        )
    from clmoe.interop.opened import open_adapter

    adapters = [open_adapter(folder) for folder in folders]
    if len(adapters) == 1:
        return _one(adapters[0])
    if len(adapters) == 2:
        return _two(adapters[0], adapters[1])
    return _three(adapters[0], adapters[1], adapters[2])


def targets_text(targets: str | tuple[str, ...]) -> str:
    """What an adapter's targets are, on one line."""
    if isinstance(targets, str):
        return targets
    return ", ".join(targets) if len(targets) <= 8 else f"{len(targets)} named one by one"


def _one(adapter: OpenedAdapter) -> Result:
    from clmoe.interop.audit import describe

    found = describe(adapter)
    experts = [
        [
            str(expert.expert),
            _number(expert.a),
            _number(expert.b),
            _number(expert.product),
            f"{expert.dead} of {found.linears}",
        ]
        for expert in found.experts
    ]
    dead = [str(e.expert) for e in found.experts if e.dead == found.linears]
    notes = list(adapter.notes)
    if dead:
        named = f"expert {dead[0]} adds" if len(dead) == 1 else f"experts {', '.join(dead)} add"
        notes.append(f"{named} nothing: B_i is all zero in every linear")
    if adapter.ignored:
        notes.append(f"ignored: {', '.join(adapter.ignored)}")
    columns = ["expert", "||A_i||", "||B_i||", "||B_i A_i||", "B_i all zero in"]
    return Result(
        command="audit",
        tables=(
            Table(str(adapter.folder), ["", ""], _facts(adapter, found)),
            Table("experts, over all linears", columns, experts),
        ),
        data={"adapters": [_data(adapter)], "description": asdict(found), "notes": notes},
        notes=tuple(notes),
    )


def _facts(adapter: OpenedAdapter, found: Description) -> list[list[str]]:
    info, settings = adapter.info, adapter.settings
    rows = [
        ["format", adapter.format],
        ["base model", info.base or "not said"],
        ["experts n", str(info.experts)],
        ["total rank r", str(info.rank)],
        ["scaling alpha / r", f"{info.alpha:g} / {info.rank} = {info.alpha / info.rank:g}"],
        ["adapted linears", f"{found.linears} ({targets_text(info.targets)})"],
        ["routers", f"{found.routers} ({info.routers})"],
        ["trained whole", ", ".join(info.modules_to_save) or DASH],
        ["parameters", f"{found.parameters:,}"],
        ["bytes", f"{found.bytes:,} ({', '.join(found.dtypes)})"],
        ["||A||", _number(found.norm_a)],
        ["||B||", _number(found.norm_b)],
    ]
    if settings is not None:
        mixed = f"beta {settings.beta:g}" if settings.mixes else "no task router"
        rows.append(["tasks", f"{', '.join(settings.tasks)} ({mixed})"])
        rows.append(["revision of the base", settings.revision or "not pinned"])
    return rows


def _two(first: OpenedAdapter, second: OpenedAdapter) -> Result:
    from clmoe.interop.audit import compare

    found = compare(first, second)
    kinds = [
        [
            kind.kind,
            str(kind.tensors),
            str(kind.differ),
            _number(kind.largest),
            _number(kind.relative),
        ]
        for kind in found.kinds
    ]
    experts = [[str(i), _number(change)] for i, change in enumerate(found.experts)]
    total = sum(kind.tensors for kind in found.kinds)
    notes = [
        f"the two are equal: all {total} tensors are the same bit for bit"
        if found.equal
        else f"{sum(kind.differ for kind in found.kinds)} of {total} tensors differ; the largest "
        f"change is in {_largest(found)}"
    ]
    notes += _apart(found.only_one)
    columns = ["tensors", "compared", "differ", "largest change", "relative change"]
    title = f"from {first.folder} to {second.folder}"
    return Result(
        command="audit",
        tables=(
            Table(title, columns, kinds),
            Table("A_i and B_i of each expert", ["expert", "relative change"], experts),
        ),
        data={
            "adapters": [_data(first), _data(second)],
            "equal": found.equal,
            "comparison": asdict(found),
            "notes": notes,
        },
        notes=tuple(notes),
    )


def _largest(found: Comparison) -> str:
    most = max(found.kinds, key=lambda kind: kind.largest)
    return most.where or "the sign of a zero, or the dtype"


def _three(previous: OpenedAdapter, current: OpenedAdapter, merged: OpenedAdapter) -> Result:
    from clmoe.interop.audit_merge import audit_merge

    found = audit_merge(previous, current=current, merged=merged)
    kinds = [
        [
            kind.kind,
            str(kind.tensors),
            str(kind.differ_from_current),
            str(kind.differ_from_previous),
            DASH if kind.fit is None else _lambda(kind.fit),
            DASH if kind.fit is None else _residual(kind.fit.residual),
        ]
        for kind in found.kinds
    ]
    columns = ["tensors", "compared", "differ from phi_t", "from theta_{t-1}", "lambda", "residual"]
    notes = [*found.sentences(), *_apart(found.only_some)]
    if len(found.experts) > ROUTERS_SHOWN:
        more = len(found.experts) - ROUTERS_SHOWN
        notes.append(f"the lambdas of {more} more routers are in the output of --json")
    return Result(
        command="audit",
        tables=(
            Table(f"what the merge made of them: {merged.folder}", columns, kinds),
            _weights(found),
            _experts(found),
        ),
        data={
            "adapters": [_data(adapter) for adapter in (previous, current, merged)],
            "merge": asdict(found),
            "notes": notes,
        },
        notes=tuple(notes),
    )


def _weights(found: MergeAudit) -> Table:
    """How often each lambda was found; what no lambda explains is a row of its own."""
    rows = [
        [f"{weight:.4f}", str(len(fits)), _residual(max(fit.residual or 0.0 for fit in fits))]
        for weight, fits in found.weights.items()
    ]
    fits = [fit for group in found.experts.values() for fit in group]
    same = sum(fit.explained and fit.weight is None for fit in fits)
    rows += [["any: theta_{t-1} equals phi_t", str(same), DASH]] * bool(same)
    left = [fit for fit in fits if not fit.explained]
    if left:
        worst = max((fit.residual for fit in left if fit.residual is not None), default=None)
        rows.append(["no lambda explains it", str(len(left)), _residual(worst)])
    return Table(
        "lambda of Eq 12, by least squares", ["lambda", "experts", "largest residual"], rows
    )


def _experts(found: MergeAudit) -> Table:
    """The lambda of each expert behind the first few routers; a star where it does not explain."""
    size = len(next(iter(found.experts.values())))
    rows = [
        [router, *(_lambda(fit) for fit in fits), _residual(_worst(fits))]
        for router, fits in list(found.experts.items())[:ROUTERS_SHOWN]
    ]
    columns = ["router", *(f"expert {i}" for i in range(size)), "residual"]
    return Table("lambda of each expert (* does not explain it)", columns, rows)


def _worst(fits: Sequence[Fit]) -> float | None:
    return max((fit.residual for fit in fits if fit.residual is not None), default=None)


def _lambda(fit: Fit) -> str:
    star = "" if fit.explained else "*"
    return DASH + star if fit.weight is None else f"{fit.weight + 0.0:.4f}{star}"


def _residual(value: float | None) -> str:
    return DASH if value is None else f"{value:.1e}"


def _apart(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"not compared, because not all of them have it: {', '.join(names)}"]


def _data(adapter: OpenedAdapter) -> dict[str, Any]:
    settings = adapter.settings
    return {
        "folder": adapter.folder,
        "format": adapter.format,
        "configuration": asdict(adapter.info),
        "ignored": list(adapter.ignored),
        "bundle": None if settings is None else asdict(settings),
    }


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"
