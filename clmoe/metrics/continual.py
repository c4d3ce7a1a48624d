"""Metrics of a sequence of tasks, from the accuracy matrix m (percent; row 0: before any task).

Each metric carries its formula, because one word means different things elsewhere: mammoth's
forgetting takes its maximum over all rows, avalanche's is first minus last, CoIN divides BWT by
M. A metric that needs a missing cell is undefined and says which; it is never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from clmoe.errors import ClmoeError
from clmoe.metrics.accuracy_matrix import AccuracyMatrix

FORMULAS = {
    "AP": "mean_b m[M][b]",
    "AF": "mean_{i<M} (m[i][i] - m[M][i])",
    "AF-ref": "mean_{i<M} (ref[i] - m[M][i])",
    "forgetting-max": "mean_{i<M} (max_{i<=a<M} m[a][i] - m[M][i])",
    "BWT": "mean_{i<M} (m[M][i] - m[i][i])",
    "FWT": "mean_{i>=2} (m[i-1][i] - m[0][i])",
    "LA": "mean_i m[i][i]",
    "AIA": "mean_k mean_{i<=k} m[k][i]",
}
_NEED_TWO_TASKS = {"AF", "AF-ref", "forgetting-max", "BWT", "FWT"}
_MOST_NAMED = 3


@dataclass(frozen=True)
class Metric:
    """One number over a matrix.

    Attributes:
        value: In percent (AP, LA, AIA) or percentage points; None where undefined.
        formula: How it is computed, with t for M after t of M tasks.
        reason: Why it is None; else None.
        label: "" for all M tasks, "after t of M", or "before any task".
    """

    value: float | None
    formula: str
    reason: str | None
    label: str


class _Missing(Exception):
    """Why a metric cannot be computed."""


class _View:
    """Cells after t tasks, numbered from 1 as in the formulas; remembers which were missing."""

    def __init__(self, matrix: AccuracyMatrix, *, after: int) -> None:
        self.matrix, self.t = matrix, after
        self.missing: dict[tuple[int, int], str] = {}

    def __call__(self, row: int, column: int) -> float:
        value = self.matrix.percent(row, self.matrix.tasks[column - 1])
        if value is None:
            task, when = self.matrix.tasks[column - 1], self.matrix.row_name(row)
            self.missing[row, column] = f"m[{row}][{column}] ({task} {when})"
            return 0.0
        return value


def summary(
    matrix: AccuracyMatrix,
    *,
    after: int | None = None,
    reference: Mapping[str, float] | None = None,
) -> dict[str, Metric]:
    """Every metric of `FORMULAS`, by name.

    Args:
        matrix: The cells.
        after: t: only tasks 1 .. t and rows up to t count. None means all M. 0 means before any
            task: AP is then the mean of row 0 over all M tasks, and no other metric is defined.
        reference: For AF-ref: percent of each task (the diagonal of the vanilla run of the same
            study and seed).

    Raises:
        ClmoeError: `after` is not a row of the matrix.
    """
    size = len(matrix.tasks)
    t = size if after is None else after
    if not 0 <= t <= size:
        raise ClmoeError(f"there is no row {t}: the matrix has {size} tasks")
    if t == 0:
        return _before_any_task(matrix)
    label = "" if t == size else f"after {t} of {size}"
    result: dict[str, Metric] = {}
    for name, compute in _COMPUTE.items():
        view = _View(matrix, after=t)
        value: float | None = None
        try:
            if t == 1 and name in _NEED_TWO_TASKS:
                raise _Missing("undefined after one task")
            value = compute(view, reference)
            reason = _needs(view.missing.values())
        except _Missing as error:
            reason = str(error)
        formula = FORMULAS[name] if t == size else FORMULAS[name].replace("M", "t")
        result[name] = Metric(None if reason else value, formula, reason, label)
    return result


def diagonal(matrix: AccuracyMatrix) -> dict[str, float]:
    """m[i][i] of each task that has it: what `reference` of another run's AF-ref wants."""
    found = {task: matrix.percent(i, task) for i, task in enumerate(matrix.tasks, start=1)}
    return {task: value for task, value in found.items() if value is not None}


def _before_any_task(matrix: AccuracyMatrix) -> dict[str, Metric]:
    label = "before any task"
    view = _View(matrix, after=0)
    value = _mean([view(0, b) for b in range(1, len(matrix.tasks) + 1)])
    reason = _needs(view.missing.values())
    undefined = {
        name: Metric(None, formula, "undefined before any task", label)
        for name, formula in FORMULAS.items()
    }
    zero_shot = Metric(None if reason else value, "mean_b m[0][b]", reason, label)
    return undefined | {"AP": zero_shot}


def _needs(missing: Iterable[str]) -> str | None:
    names = list(missing)
    if not names:
        return None
    rest = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"missing: {', '.join(names[:_MOST_NAMED])}{rest}"


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def _ap(m: _View, _: object) -> float:
    return _mean([m(m.t, b) for b in range(1, m.t + 1)])


def _af(m: _View, _: object) -> float:
    return _mean([m(i, i) - m(m.t, i) for i in range(1, m.t)])


def _af_ref(m: _View, reference: Mapping[str, float] | None) -> float:
    if reference is None:
        raise _Missing("no reference: needs the vanilla run of the same study and seed")
    tasks = m.matrix.tasks[: m.t - 1]
    absent = [task for task in tasks if task not in reference]
    if absent:
        raise _Missing(f"missing in the reference: {', '.join(absent)}")
    return _mean([reference[task] - m(m.t, i) for i, task in enumerate(tasks, start=1)])


def _forgetting_max(m: _View, _: object) -> float:
    return _mean([max(m(a, i) for a in range(i, m.t)) - m(m.t, i) for i in range(1, m.t)])


def _bwt(m: _View, _: object) -> float:
    return _mean([m(m.t, i) - m(i, i) for i in range(1, m.t)])


def _fwt(m: _View, _: object) -> float:
    return _mean([m(i - 1, i) - m(0, i) for i in range(2, m.t + 1)])


def _la(m: _View, _: object) -> float:
    return _mean([m(i, i) for i in range(1, m.t + 1)])


def _aia(m: _View, _: object) -> float:
    return _mean([_mean([m(k, i) for i in range(1, k + 1)]) for k in range(1, m.t + 1)])


_COMPUTE: dict[str, Callable[[_View, Mapping[str, float] | None], float]] = {
    "AP": _ap,
    "AF": _af,
    "AF-ref": _af_ref,
    "forgetting-max": _forgetting_max,
    "BWT": _bwt,
    "FWT": _fwt,
    "LA": _la,
    "AIA": _aia,
}
