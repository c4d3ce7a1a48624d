"""Looking at runs without running anything: status, use, clean."""

from __future__ import annotations

from pathlib import Path

from clmoe.errors import InputStageError
from clmoe.runs.maintenance import remove, unreferenced
from clmoe.runs.plan import Node, Plan, order_tasks
from clmoe.runs.run import Run
from clmoe.stages.result import Result, Table


def status(runs_dir: Path, *, run: str | None, verify: bool) -> Result:
    """Say of every stage whether it is fresh, and why not; ``verify`` hashes every file again."""
    opened = Run.open(runs_dir, run)
    try:
        states = opened.states(rehash=verify)
    except InputStageError:
        states = [opened.state(Node("prepare"))]
    rows = [[state.node.label, state.status, "; ".join(state.reasons)] for state in states]
    columns = ["stage", "state", "why"]
    wanting = next((state for state in states if state.status != "fresh"), None)
    total = sum(state.status == "fresh" for state in states)
    return Result(
        command="status",
        run=opened.name,
        tables=(Table(f"run {opened.name} ({opened.recipe.method.name})", columns, rows),),
        data={
            "states": [
                {**dict(zip(columns, row, strict=True)), "fingerprint": state.fingerprint}
                for row, state in zip(rows, states, strict=True)
            ]
        },
        notes=(f"{total} of {len(states)} stages are fresh; {len(opened.history())} versions",),
        next_command=opened.command(wanting.node) if wanting else "clmoe report --report all",
    )


def show_plan(opened: Run) -> Result:
    """List every stage that the recipe asks for, its state and why, before anything runs."""
    from clmoe.data.sources.registry import get_source

    data = opened.recipe.data
    try:
        states = [(s.node.label, s.status, "; ".join(s.reasons)) for s in opened.states()]
    except InputStageError:
        known = data.tasks or get_source(data.source).default_order
        if not known:
            raise InputStageError(
                f"only the data of {data.source} tells which tasks there are: prepare it first",
                hint=f"clmoe prepare --recipe {opened.recipe.name}",
            ) from None
        plan = Plan(opened.recipe, order_tasks(known, order=opened.recipe.protocol.order))
        states = [(node.label, "missing", "never run") for node in plan.nodes()]
    rows = [list(state) for state in states]
    work = sum(row[1] != "fresh" for row in rows)
    return Result(
        command="run",
        run=opened.name,
        tables=(Table("plan", ["stage", "state", "why"], rows),),
        data={"plan": [dict(zip(("stage", "state", "why"), row, strict=True)) for row in rows]},
        notes=(f"{work} of {len(rows)} stages would run",),
        next_command=f"clmoe run {opened.recipe.name}",
    )


def use(runs_dir: Path, name: str) -> Result:
    """Make a run the current one."""
    opened = Run.open(runs_dir, name)
    opened.make_current()
    return Result(
        command="use",
        run=name,
        notes=(f"{name} is the current run",),
        next_command="clmoe status",
    )


def clean(runs_dir: Path, *, apply: bool) -> Result:
    """List what no run uses; with ``apply`` remove it."""
    found = unreferenced(runs_dir)
    total = sum(item.bytes for item in found)
    rows = [[str(item.path.relative_to(runs_dir.absolute())), _size(item.bytes)] for item in found]
    if apply:
        remove(runs_dir, chosen=found)
    done = "removed" if apply else "no run uses"
    return Result(
        command="clean",
        tables=(Table("", ["path", "size"], rows),) if rows else (),
        data={"paths": [row[0] for row in rows], "bytes": total, "removed": apply},
        notes=(f"{done} {len(found)} versions, {_size(total)}",),
        next_command="clmoe clean --yes" if found and not apply else "clmoe status",
    )


def _size(number: int) -> str:
    size = float(number)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
