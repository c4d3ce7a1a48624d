"""Momentum of experts across tasks: theta_t from theta_{t-1} and phi_t (Eq 10 to 12)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from clmoe.method.expert_roles import assign_roles, single_expert_roles
from clmoe.method.merge_report import MergeReport
from clmoe.method.momentum import merge_adapters
from clmoe.method.task_router import load_task_router
from clmoe.runs.plan import Node
from clmoe.stages.context import Context
from clmoe.stages.stage import StageResult


def perform(context: Context, node: Node, folder: Path) -> StageResult:
    """Merge the trained adapter of a task into the merged one of the tasks before it."""
    recipe, run, task = context.recipe, context.run, str(node.task)
    earlier = run.plan.tasks[: (node.position or 1) - 1]
    settings, experts = recipe.merge, recipe.adapter.experts
    if experts == 1:
        roles = single_expert_roles(gamma=settings.gamma)
    else:
        chosen = [
            load_task_router(run.output(Node("route", name), "router")).experts
            for name in (*earlier, task)
        ]
        roles = assign_roles(
            chosen[-1], previous=chosen[:-1], experts=experts, gamma=settings.gamma
        )
    report = merge_adapters(
        run.output(Node("merge", earlier[-1]), "adapter") if earlier else None,
        current_dir=run.output(Node("train", task), "adapter"),
        out_dir=folder / "adapter",
        roles=roles,
        gamma=settings.gamma,
        space=settings.space,
        routers=settings.routers,
        extras="momentum" if recipe.base.projector == "merged" else "keep",
    )
    text = json.dumps(report.as_dict(), indent=1)
    (folder / "merge.json").write_text(text + "\n", encoding="utf-8")
    return StageResult(
        outputs={"adapter": "adapter", "merge": "merge.json"},
        counts={"tensors": report.factors.total + report.routers.total + report.extras.total},
        summary={"first_task": report.first_task, "gamma": settings.gamma},
        lines=_lines(report, task=task),
    )


def _lines(report: MergeReport, *, task: str) -> tuple[str, ...]:
    if report.first_task:
        return (f"{task} is the first task, so there is nothing to merge: theta_1 = phi_1",)
    roles = Counter(change.role for changes in report.changes.values() for change in changes)
    lines = [
        f"{task}: gamma {report.gamma:g}, {report.space}; experts at all routers: "
        + ", ".join(f"{roles[role]} {role}" for role in ("specific", "shared", "none"))
    ]
    for name in ("factors", "routers", "extras"):
        counts = getattr(report, name)
        if counts.total:
            lines.append(
                f"{name}: of {counts.total} tensors {counts.differ_from_current} differ from phi_t "
                f"and {counts.differ_from_previous} from theta_(t-1)"
            )
    return tuple(lines)
