"""The task index R_t: what Eq 8 compares a question with. It depends on no training."""

from __future__ import annotations

from pathlib import Path

from clmoe.method.task_index import fit_task, save_task_index
from clmoe.parallel.world import world
from clmoe.runs.plan import Node
from clmoe.stages.context import Context
from clmoe.stages.stage import StageResult


def perform(context: Context, node: Node, folder: Path) -> StageResult:
    """Fit the index of one task on F(x) of its training questions."""
    task, settings = str(node.task), context.recipe.index
    features = context.features(task, "train")
    if not world().leads:
        return StageResult(outputs={})
    fitted = fit_task(
        features, task=task, kind=settings.kind, centers=settings.centers, seed=settings.seed
    )
    save_task_index(fitted, folder / "index")
    return StageResult(
        outputs={"index": "index"},
        counts={"questions": features.shape[0], "dimensions": features.shape[1]},
        summary={"kind": settings.kind, "feature": settings.feature},
        lines=(
            f"{task}: {settings.kind} index from {features.shape[0]} questions, "
            f"{features.shape[1]} dimensions ({settings.feature})",
        ),
    )
