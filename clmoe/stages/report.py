"""Collect the cells of a run that are up to date, and write them down."""

from __future__ import annotations

import json

from clmoe.errors import InputStageError
from clmoe.evaluation.samples import read_samples
from clmoe.events import StageFinished, emit
from clmoe.method.identification import identification
from clmoe.metrics.accuracy_matrix import AccuracyMatrix, Cell
from clmoe.reporting.measured import Measured
from clmoe.runs.manifest import Manifest
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages.result import Outcome


def measure(run: Run, *, after: int | None = None) -> Measured:
    """Gather every fresh cell of the accuracy matrix.

    Args:
        run: The run.
        after: Only rows up to this one; None: all.

    Raises:
        InputStageError: There is no cell after any task.
    """
    plan, scorer = run.plan, run.recipe.report.scorer
    cells: dict[tuple[int, str], Cell] = {}
    undefined: dict[tuple[int, str], str] = {}
    found: dict[tuple[int, str], Manifest] = {}
    last = len(plan.tasks) if after is None else after
    rows = (0, last) if plan.recipe.protocol.joint else range(last + 1)
    for row in rows:
        for task in plan.tasks:
            node = plan.cell(row, task)
            if run.state(node).status != "fresh":
                continue
            found[row, task] = manifest = run.manifest(node)
            score = manifest.summary["scores"][scorer]
            if score["correct"] is None:
                undefined[row, task] = score["reason"]
            else:
                cells[row, task] = Cell(correct=score["correct"], asked=score["total"])
    newest = max((row for row, _ in found), default=0)
    if newest == 0:
        raise InputStageError(
            "no row of the accuracy matrix is up to date", hint="clmoe eval --report ap-af"
        )
    oracle = run.recipe.eval.oracle_task
    seen = plan.tasks[:newest]
    identified = None
    if plan.soft_gates and not oracle:
        samples = [
            sample
            for task in seen
            if (newest, task) in found
            for sample in read_samples(run.output(plan.cell(newest, task), "samples"))
        ]
        identified = identification(
            [s.task for s in samples],
            predicted=[str(s.predicted_task) for s in samples],
            order=plan.tasks,
            learned=seen,
        )
    return Measured(
        name=run.recipe.method.name,
        scorer=scorer,
        matrix=AccuracyMatrix(tasks=plan.tasks, cells=cells),
        after=newest,
        undefined=undefined,
        identified=identified,
        oracle=oracle and plan.soft_gates,
    )


def write(run: Run, measured: Measured) -> Outcome:
    """Commit the report as CSV, JSON and Markdown."""
    node = Node("report")
    state = run.state(node)
    status = "skipped"
    if state.status != "fresh" and not run.adopt(node):
        workspace = run.begin(node)
        files = {
            "matrix": ("matrix.csv", measured.matrix_table().csv()),
            "metrics": ("metrics.csv", measured.metric_table().csv()),
            "report": ("report.json", json.dumps(measured.data(), indent=1) + "\n"),
            "markdown": ("report.md", measured.markdown()),
        }
        for name, text in files.values():
            (workspace.path / name).write_text(text, encoding="utf-8")
        run.commit(
            workspace,
            outputs={key: name for key, (name, _) in files.items()},
            counts={"cells": len(measured.matrix.cells)},
        )
        status = "done"
    manifest, state = run.manifest(node), run.state(node)
    emit(StageFinished("report", None, manifest.seconds, f"{manifest.counts['cells']} cells"))
    assert state.directory is not None
    return Outcome(
        node_label=node.label,
        status=status,
        reason="nothing changed" if status == "skipped" else "cells changed",
        seconds=manifest.seconds,
        fingerprint=manifest.fingerprint,
        path=state.directory,
        summary={"counts": dict(manifest.counts)},
        lines=(f"matrix.csv, metrics.csv, report.json and report.md in {run.path / 'report'}",),
    )
