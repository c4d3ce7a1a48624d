"""What was measured in a run: the accuracy matrix, its metrics, and task identification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clmoe.method.identification import Identification
from clmoe.metrics.accuracy_matrix import AccuracyMatrix, Cell
from clmoe.metrics.continual import Metric, summary
from clmoe.metrics.intervals import wilson
from clmoe.reporting.tables import DASH, Table, percent

HEADLINE = ("AP", "AF")


@dataclass(frozen=True)
class OutdatedCell:
    """A cell that was evaluated and does not count now.

    Attributes:
        status: ``stale`` or ``damaged``.
        why: The stage that this began with and what is wrong there, e.g. ``merge/02-location:
            merge.gamma 0.7 -> 0.9``.
    """

    status: str
    why: str


@dataclass(frozen=True)
class Measured:
    """Cells and what follows from them.

    Attributes:
        name: What to call the run in titles, e.g. ``clmoe``.
        scorer: The scorer behind the cells.
        matrix: The accuracy matrix.
        after: The row that the metrics are about, from 1.
        undefined: Why a cell has no score, by its place ``row, task``; such cells are missing.
        identified: How the task index took the questions of the row; None where it was not used.
        oracle: Whether true task ids were used in place of the index.
        task_known: Whether questions could show their task.
        outdated: Row -> its first cell that is stale or damaged, where it has such cells.
    """

    name: str
    scorer: str
    matrix: AccuracyMatrix
    after: int
    undefined: Mapping[tuple[int, str], str] = field(default_factory=dict)
    identified: Identification | None = None
    oracle: bool = False
    task_known: bool = False
    outdated: Mapping[int, OutdatedCell] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """How every table's title begins."""
        return f"{self.name}, task given" if self.task_known else self.name

    @property
    def seen(self) -> tuple[str, ...]:
        """The tasks learned by the row that the metrics are about."""
        return self.matrix.tasks[: self.after]

    @property
    def label(self) -> str:
        """``after t of M``, or ``after all M``."""
        size = len(self.matrix.tasks)
        which = f"all {size}" if self.after == size else f"{self.after} of {size}"
        return f"after {which} tasks" + (", true task ids" if self.oracle else "")

    def metrics(self) -> dict[str, Metric]:
        """Every metric after the row."""
        return summary(self.matrix, after=self.after)

    def tables(self, *, kind: str) -> tuple[Table, ...]:
        """Tables to print: ``ap-af``: the row and its AP and AF; ``all``: everything."""
        if kind == "ap-af":
            return self.row_table(), self.metric_table(HEADLINE)
        tables = [self.matrix_table(), self.row_table(), self.metric_table()]
        if self.identified is not None:
            tables.append(self.confusion_table(self.identified))
        return tuple(tables)

    def matrix_table(self) -> Table:
        """m[a][b]: a row for each number of tasks learned, a column for each task."""
        size = len(self.matrix.tasks)
        rows = []
        for row in range(size + 1):
            cells = [self.matrix.percent(row, task) for task in self.matrix.tasks]
            if any(cell is not None for cell in cells):
                name = "zero-shot" if row == 0 else self.matrix.row_name(row)
                rows.append([name, *map(percent, cells)])
        title = f"{self.title}: accuracy matrix, {self.scorer}, percent"
        return Table(title, ["learned", *self.matrix.tasks], rows)

    def row_table(self) -> Table:
        """The newest row with counts and 95 % Wilson intervals, beside zero-shot."""
        rows = []
        for task in self.matrix.tasks:
            cell = self.matrix.cells.get((self.after, task))
            if cell is None and task not in self.seen:
                continue
            rows.append(
                [
                    task,
                    *_cell(cell),
                    percent(self.matrix.percent(0, task)),
                    self._identified(task),
                ]
            )
        title = f"{self.title}: accuracy {self.label}, {self.scorer}"
        columns = ["task", "right/asked", "percent", "95 % interval", "zero-shot", "identified %"]
        return Table(title, columns, rows)

    def metric_table(self, names: tuple[str, ...] | None = None) -> Table:
        """Metrics with their formulas; an undefined one is a dash with the reason."""
        metrics = self.metrics()
        rows = [
            [name, percent(m.value, digits=2), m.reason or m.formula]
            for name, m in metrics.items()
            if names is None or name in names
        ]
        zero = summary(self.matrix, after=0)["AP"]
        rows.append(["zero-shot AP", percent(zero.value, digits=2), zero.reason or zero.formula])
        if names is None:
            share = None if self.identified is None else self.identified.overall
            told = "true task ids were used" if self.oracle else "no task index was used"
            formula = "percent of questions of learned tasks whose task Eq 8 finds"
            reason = told if share is None else formula
            rows.append(["identified", percent(share, digits=2), reason])
        return Table(f"{self.title}: metrics {self.label}", ["metric", "value", "formula"], rows)

    def confusion_table(self, found: Identification) -> Table:
        """Which task the index took the questions of each task for, in numbers of questions."""
        rows = [
            [task, *map(str, counts)]
            for task, counts in zip(found.tasks, found.confusion, strict=True)
        ]
        title = f"{self.title}: task identification {self.label}, questions"
        return Table(title, ["taken for", *found.learned], rows)

    def data(self) -> dict[str, Any]:
        """Everything as plain JSON values; undefined metrics are null with their reason."""
        cells = [
            {
                "row": row,
                "learned": self.matrix.row_name(row),
                "task": task,
                "correct": cell.correct,
                "asked": cell.asked,
                "percent": cell.percent,
                "interval": asdict(wilson(cell.correct, asked=cell.asked)),
            }
            for (row, task), cell in sorted(self.matrix.cells.items())
        ]
        undefined = [
            {"row": row, "task": task, "reason": reason}
            for (row, task), reason in sorted(self.undefined.items())
        ]
        return {
            "name": self.name,
            "scorer": self.scorer,
            "tasks": list(self.matrix.tasks),
            "after": self.after,
            "of": len(self.matrix.tasks),
            "oracle_task": self.oracle,
            "task_known": self.task_known,
            "cells": cells,
            "undefined_cells": undefined,
            "metrics": {name: asdict(metric) for name, metric in self.metrics().items()},
            "zero_shot": asdict(summary(self.matrix, after=0)["AP"]),
            "identification": None if self.identified is None else self.identified.as_dict(),
        }

    def markdown(self) -> str:
        """The whole report as Markdown."""
        return "\n".join(table.markdown() for table in self.tables(kind="all"))

    def _identified(self, task: str) -> str:
        return DASH if self.identified is None else percent(self.identified.accuracy.get(task))


def outdated_text(outdated: Mapping[int, OutdatedCell]) -> str:
    """Which rows do not count now, e.g. ``rows 2 to 10 are stale``."""
    rows = sorted(outdated)
    starts = [row for row in rows if row - 1 not in outdated]
    ends = [row for row in rows if row + 1 not in outdated]
    spans = [f"{a}" if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True)]
    status = " or ".join(sorted({cell.status for cell in outdated.values()}, reverse=True))
    some, verb = ("row", "is") if len(rows) == 1 else ("rows", "are")
    return f"{some} {', '.join(spans)} {verb} {status}"


def outdated_reason(outdated: Mapping[int, OutdatedCell]) -> str:
    """The same with the reason of the first, e.g. ``row 2 is stale (index/02-count: ...)``."""
    return f"{outdated_text(outdated)} ({outdated[min(outdated)].why})"


def _cell(cell: Cell | None) -> list[str]:
    if cell is None:
        return [DASH, DASH, DASH]
    interval = wilson(cell.correct, asked=cell.asked)
    return [
        f"{cell.correct:g}/{cell.asked}",
        percent(cell.percent),
        f"{interval.low:.1f}-{interval.high:.1f}",
    ]
