"""The accuracy matrix: m[a][b] is the accuracy on task b after training on task a."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clmoe.errors import ClmoeError


@dataclass(frozen=True)
class Cell:
    """How many questions of one task were answered rightly after training on one task.

    Attributes:
        correct: k, the sum of scores; not whole where a scorer gives fractions.
        asked: N, the questions asked (not the answers found).
    """

    correct: float
    asked: int

    def __post_init__(self) -> None:
        """Refuses what cannot be a count."""
        if self.asked < 1 or not 0 <= self.correct <= self.asked + 1e-9:
            raise ClmoeError(f"{self.correct} right of {self.asked} asked is no accuracy")

    @property
    def percent(self) -> float:
        """100 k / N."""
        return 100 * self.correct / self.asked


@dataclass(frozen=True)
class AccuracyMatrix:
    """Cells by (row, task); any may be missing, and a missing one is never 0.

    Row a = 1 .. M is after training on task a; row 0 is before any task. A jointly trained model
    has row M only.

    Attributes:
        tasks: The M tasks in the order of training.
        cells: (row, task) -> cell.
    """

    tasks: tuple[str, ...]
    cells: Mapping[tuple[int, str], Cell]

    def __post_init__(self) -> None:
        """Refuses repeated tasks, and cells of no row or task."""
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ClmoeError(f"a matrix needs tasks, each once; got {list(self.tasks)}")
        wrong = [
            f"{row}, {task}"
            for row, task in self.cells
            if task not in self.tasks or not 0 <= row <= len(self.tasks)
        ]
        if wrong:
            raise ClmoeError(f"cells outside the matrix: {'; '.join(wrong)}")

    def percent(self, row: int, task: str) -> float | None:
        """m[row][task] in percent, or None where the cell is missing."""
        cell = self.cells.get((row, task))
        return None if cell is None else cell.percent

    def row_name(self, row: int) -> str:
        """How a row is called: "before any task" or "after TASK"."""
        return "before any task" if row == 0 else f"after {self.tasks[row - 1]}"
