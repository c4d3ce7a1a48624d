"""Collect the cells of a run that are up to date, and write them down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clmoe.errors import InputStageError
from clmoe.evaluation.samples import read_samples
from clmoe.events import StageFinished, emit
from clmoe.method.identification import identification
from clmoe.metrics.accuracy_matrix import AccuracyMatrix, Cell
from clmoe.metrics.answer_accuracy import score_all
from clmoe.reporting.measured import Measured, OutdatedCell, outdated_reason, outdated_text
from clmoe.reporting.oracle_cost import oracle_table
from clmoe.reporting.understanding import tables as inside_tables
from clmoe.runs.freshness import NodeState
from clmoe.runs.manifest import Manifest
from clmoe.runs.plan import Node, Plan
from clmoe.runs.run import Run
from clmoe.stages.result import Outcome, Table
from clmoe.stages.understanding import understand


def measure(run: Run, *, after: int | None = None, scorer: str | None = None) -> Measured:
    """Gather every fresh cell of the accuracy matrix.

    Args:
        run: The run.
        after: Only rows up to this one; None: all.
        scorer: The scorer of the cells; None: the recipe's.

    Raises:
        InputStageError: There is no cell after any task.
    """
    plan, scorer = run.plan, scorer or run.recipe.report.scorer
    states = {state.node.label: state for state in run.states()}
    cells: dict[tuple[int, str], Cell] = {}
    undefined: dict[tuple[int, str], str] = {}
    found: dict[tuple[int, str], Manifest] = {}
    outdated: dict[int, OutdatedCell] = {}
    last = len(plan.tasks) if after is None else after
    rows = (0, last) if plan.recipe.protocol.joint else range(last + 1)
    for row in rows:
        for task in plan.tasks:
            node = plan.cell(row, task)
            state = states.get(node.label)
            if state is None or state.status != "fresh":
                if state is not None and state.status != "missing":
                    outdated.setdefault(row, _outdated(state, states=states, plan=plan))
                continue
            found[row, task] = run.manifest(node)
            score = cell_score(run, node, scorer=scorer)
            if score["correct"] is None:
                undefined[row, task] = score["reason"]
            else:
                cells[row, task] = Cell(correct=score["correct"], asked=score["total"])
    newest = max((row for row, _ in found), default=0)
    if newest == 0:
        told = f": {outdated_reason(outdated)}" if outdated else ""
        raise InputStageError(
            f"no row of the accuracy matrix is up to date{told}", hint="clmoe eval --report ap-af"
        )
    oracle = run.recipe.eval.oracle_task
    seen = plan.tasks[:newest]
    identified = None
    if plan.indexes and not oracle:
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
        oracle=oracle and plan.indexes,
        task_known=run.recipe.protocol.task_known,
        outdated=outdated,
    )


def _outdated(state: NodeState, *, states: Mapping[str, NodeState], plan: Plan) -> OutdatedCell:
    """A cell waits for an input that waits for another: the first of them has the reason."""
    first = state
    while first.fingerprint is None:
        above = (states.get(read.node.label) for read in plan.reads(first.node))
        waited = next((other for other in above if other and other.status != "fresh"), None)
        if waited is None:
            break
        first = waited
    why = first.text.removeprefix(f"{first.status}: ")
    return OutdatedCell(state.status, why=f"{first.node.label}: {why}")


def cell_score(run: Run, node: Node, *, scorer: str) -> Mapping[str, Any]:
    """What a scorer makes of a cell: ``correct`` (None with a ``reason``) and ``total``.

    Evaluation keeps the scores of the scorers that it knew; another one scores the answers now.

    Raises:
        UsageError: There is no such scorer.
    """
    kept: Mapping[str, Any] = run.manifest(node).summary["scores"]
    if scorer in kept:
        found: Mapping[str, Any] = kept[scorer]
        return found
    samples = read_samples(run.output(node, "samples"))
    answered = [(s.prediction, s.answer, s.answers) for s in samples]
    return score_all(answered, scorers=(scorer,))[scorer].as_dict()


def write(run: Run, measured: Measured, *, understood: Mapping[str, Any] | None = None) -> Outcome:
    """Commit the report as CSV, JSON and Markdown.

    Args:
        run: The run.
        measured: Its matrix and metrics.
        understood: What `understand` says of it; None: it is asked when needed.
    """
    node = Node("report")
    state = run.state(node)
    status = "skipped"
    if state.status != "fresh" and not run.adopt(node):
        workspace = run.begin(node)
        inside = understand(run, measured) if understood is None else understood
        files = {
            "matrix": ("matrix.csv", measured.matrix_table().csv()),
            "metrics": ("metrics.csv", measured.metric_table().csv()),
            "report": ("report.json", json.dumps(measured.data(), indent=1) + "\n"),
            "understanding": ("understanding.json", json.dumps(inside, indent=1) + "\n"),
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
        lines=(f"{', '.join(_names(manifest))} in {run.path / 'report'}",),
    )


def present(
    run: Run, *, kind: str, figures: bool
) -> tuple[Outcome, tuple[Table, ...], dict[str, Any], list[str]]:
    """Commit the report and return what `clmoe report` shows: outcome, tables, data and notes.

    What needs another run, the cost of misidentified tasks, is shown and not committed: in the
    data it is the ``oracle`` of ``understanding``, null where no such run tells.

    Args:
        run: The run.
        kind: ``ap-af``, ``all`` or ``none``: what to show of the tables.
        figures: Also draw them, into the folder of the report.
    """
    from clmoe.stages.oracle import oracle_cost  # it compares what `measure` finds

    measured = measure(run)
    inside = understand(run, measured)
    outcome = write(run, measured, understood=inside)
    tables = measured.tables(kind=kind)
    cost = oracle_cost(run, scorer=measured.scorer)
    if kind == "all":
        tables += (*inside_tables(inside), *oracle_table([] if cost is None else [cost]))
    notes = [f"written to {run.path / 'report'}"]
    if measured.outdated:
        command = "clmoe status" + ("" if run.is_current() else f" --run {run.name}")
        notes.insert(0, f"{outdated_text(measured.outdated)}: `{command}` says why")
    drawn = draw(run, measured, understood=inside) if figures else ()
    if drawn:
        names = ", ".join(dict.fromkeys(path.stem for path in drawn))
        notes.append(f"figures, as PNG and SVG: {names} in {drawn[0].parent}")
    shown = {**inside, "oracle": None if cost is None else cost.data()}
    data = {**measured.data(), "understanding": shown, "figures": [str(path) for path in drawn]}
    return outcome, tables, data, notes


def draw(run: Run, measured: Measured, *, understood: Mapping[str, Any]) -> tuple[Path, ...]:
    """Draw the figures into the folder of the committed report; they are made from it alone."""
    from clmoe.reporting.figures import run_figures, save

    folder = run.path / "report" / "figures"
    return tuple(
        path
        for name, figure in run_figures(measured, understood=understood).items()
        for path in save(figure, folder=folder, name=name)
    )


def _names(manifest: Manifest) -> list[str]:
    return [record.path for record in manifest.outputs.values()]
