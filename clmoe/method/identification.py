"""How well a task index tells tasks apart: accuracy per task, and who is taken for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clmoe.errors import ClmoeError


@dataclass(frozen=True)
class Identification:
    """Identified tasks against true ones.

    Attributes:
        tasks: True tasks that occur, in the order given: the rows.
        learned: Tasks that the index knows: the columns.
        confusion: How often a question of the row's task was taken for the column's.
        accuracy: Percent identified of each row's questions; None for a task not learned yet,
            which cannot be identified.
        overall: Percent identified of all questions of learned tasks; None if there are none.
    """

    tasks: tuple[str, ...]
    learned: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    accuracy: dict[str, float | None]
    overall: float | None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain lists, dictionaries, numbers and strings, for JSON."""
        return asdict(self)


def identification(
    true: Sequence[str], *, predicted: Sequence[str], order: Sequence[str], learned: Sequence[str]
) -> Identification:
    """Counts questions by true and by identified task.

    Args:
        true: The task of each question.
        predicted: The task that Eq 8 gave it.
        order: All tasks, in order.
        learned: The tasks in the index, in order.

    Raises:
        ClmoeError: The two lists differ in length, or a name is unknown.
    """
    if len(true) != len(predicted):
        raise ClmoeError(f"{len(true)} true tasks, but {len(predicted)} identified ones")
    unknown = sorted((set(true) - set(order)) | (set(predicted) - set(learned)))
    if unknown:
        raise ClmoeError(f"unknown tasks: {', '.join(unknown)}")
    pairs = Counter(zip(true, predicted, strict=True))
    present = set(true)
    rows = tuple(task for task in order if task in present)
    table = {row: tuple(pairs[row, column] for column in learned) for row in rows}
    accuracy = {
        row: 100 * pairs[row, row] / sum(table[row]) if row in learned else None for row in rows
    }
    asked = sum(sum(table[row]) for row in rows if row in learned)
    right = sum(pairs[row, row] for row in rows if row in learned)
    return Identification(
        tasks=rows,
        learned=tuple(learned),
        confusion=tuple(table.values()),
        accuracy=accuracy,
        overall=100 * right / asked if asked else None,
    )
