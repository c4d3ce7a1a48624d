"""Gathering what `clmoe.reporting.understanding` counts from the stages of one run."""

from __future__ import annotations

import json
from typing import Any

from clmoe.errors import UsageError
from clmoe.evaluation.samples import Sample, read_samples
from clmoe.metrics.answer_accuracy import get_scorer
from clmoe.reporting.measured import Measured
from clmoe.reporting.understanding import (
    RoutedTask,
    by_type,
    expert_usage,
    misidentification,
    momentum_log,
)
from clmoe.runs.plan import Node
from clmoe.runs.run import Run


def understand(run: Run, measured: Measured) -> dict[str, Any]:
    """Everything that `clmoe report` says of a run besides its matrix, as JSON values.

    ``experts`` and ``momentum`` are empty where the method has none; ``misidentification`` is null
    where no task was predicted. Tasks whose stages are not up to date are left out, and so is a
    question type where the scorer is not defined.
    """
    fresh = {state.node.label for state in run.states() if state.status == "fresh"}
    routed, merges = [], []
    for node in (node for t in range(1, measured.after + 1) for node in run.plan.learning(t)):
        if node.label not in fresh:
            continue
        if node.stage == "route":
            routed.append(_routed(run, node))
        elif node.stage == "merge":
            text = run.output(node, "merge").read_text(encoding="utf-8")
            merges.append((str(node.task), json.loads(text)))
    samples = [
        sample
        for task in measured.seen
        if (measured.after, task) in measured.matrix.cells
        for sample in read_samples(run.output(run.plan.cell(measured.after, task), "samples"))
    ]

    def score(sample: Sample) -> float:
        found = get_scorer(measured.scorer)(sample.prediction, sample.answer, sample.answers)
        if found.value is None:
            raise UsageError(f"{sample.question_id} has no {measured.scorer} score: {found.reason}")
        return found.value

    predicted = [sample for sample in samples if sample.predicted_task is not None]
    cost = None
    if predicted and not measured.oracle:
        cost = misidentification(predicted, score=score)
    identified = measured.identified
    return {
        "title": measured.title,
        "scorer": measured.scorer,
        "after": measured.after,
        "routed": len(routed),
        "experts": expert_usage(routed),
        "momentum": momentum_log(merges),
        "identification": None if identified is None else identified.as_dict(),
        "misidentification": cost,
        "types": by_type(samples, score=score),
    }


def _routed(run: Run, node: Node) -> RoutedTask:
    from clmoe.method.task_router import load_task_router  # torch, which `compare` does without

    router = load_task_router(run.output(node, "router"))
    return RoutedTask(
        task=str(node.task),
        weights={name: weights.tolist() for name, weights in router.weights.items()},
        experts=router.experts,
        gaps=router.gaps,
    )
