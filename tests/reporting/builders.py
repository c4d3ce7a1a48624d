"""Runs made by hand, for comparisons whose numbers a reader can check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clmoe.metrics.accuracy_matrix import AccuracyMatrix, Cell
from clmoe.recipe.presets import PRESETS
from clmoe.reporting.compared_run import ComparedRun

TASKS = ("color", "count")
PAPER_SETTINGS: dict[str, Any] = {
    "data.source": "shapes",
    "base.model": "tiny",
    "adapter.experts": 8,
    "route.top_k": 2,
    "merge.gamma": 0.7,
    "merge.rule": "roles",
    "eval.beta": 0.5,
    "eval.oracle_task": False,
    "protocol.task_known": False,
    "protocol.joint": False,
    "protocol.per_task": False,
    "protocol.order": "forward",
    "strategy.kind": "none",
}


def made_run(
    name: str,
    *,
    method: str = "clmoe",
    seed: int = 0,
    rows: Mapping[int, Sequence[float | None]] | None = None,
    tasks: Sequence[str] = TASKS,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    asked: int = 4,
    **changes: Any,
) -> ComparedRun:
    """A run with `rows` of right answers out of `asked`, whose last row has these `scores`."""
    tasks = tuple(tasks)
    given = rows or {len(tasks): [2] * len(tasks)}
    cells = {
        (row, task): Cell(correct=right, asked=asked)
        for row, values in given.items()
        for task, right in zip(tasks, values, strict=False)
        if right is not None
    }
    last = max(given)
    if scores is None:
        scores = {
            task: {f"{task}-{i}": float(i < cells[last, task].correct) for i in range(asked)}
            for task in tasks[:last]
        }
    special = {
        key: changes.pop(key)
        for key in ("data", "identified", "parameters", "extra_bytes", "extra", "scorer")
        if key in changes
    }
    settings = {
        **PAPER_SETTINGS,
        **PRESETS[method].values,
        "method.name": method,
        "train.seed": seed,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return ComparedRun(
        name=name,
        settings=settings,
        matrix=AccuracyMatrix(tasks=tasks, cells=cells),
        after=last,
        scorer=special.pop("scorer", "exact"),
        scores=scores,
        data=special.pop("data", {task: "same" for task in scores}),
        **special,
    )
