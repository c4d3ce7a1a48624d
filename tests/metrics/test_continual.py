"""Metrics of a sequence of tasks, against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmoe.errors import ClmoeError
from clmoe.metrics.accuracy_matrix import AccuracyMatrix, Cell
from clmoe.metrics.continual import FORMULAS, diagonal, summary

TASKS = ("a", "b", "c")
#        a   b   c
ROWS = [
    [10, 20, 30],  # before any task
    [80, 25, 28],
    [84, 90, 40],
    [50, 75, 60],
]


def matrix_of(rows: list[list[float | None]], tasks: tuple[str, ...] = TASKS) -> AccuracyMatrix:
    return AccuracyMatrix(
        tasks,
        {
            (row, task): Cell(value, 100)
            for row, values in enumerate(rows)
            for task, value in zip(tasks, values, strict=True)
            if value is not None
        },
    )


def values(matrix: AccuracyMatrix, **options) -> dict[str, float | None]:
    return {name: metric.value for name, metric in summary(matrix, **options).items()}


def test_all_metrics_by_hand() -> None:
    found = values(matrix_of(ROWS), reference={"a": 85, "b": 95})
    assert found == pytest.approx(
        {
            "AP": (50 + 75 + 60) / 3,
            "AF": ((80 - 50) + (90 - 75)) / 2,
            "AF-ref": ((85 - 50) + (95 - 75)) / 2,
            "forgetting-max": ((84 - 50) + (90 - 75)) / 2,
            "BWT": -22.5,
            "FWT": ((25 - 20) + (40 - 30)) / 2,
            "LA": (80 + 90 + 60) / 3,
            "AIA": (80 + (84 + 90) / 2 + (50 + 75 + 60) / 3) / 3,
        }
    )
    metrics = summary(matrix_of(ROWS))
    assert {name: metric.formula for name, metric in metrics.items()} == FORMULAS
    assert {metric.label for metric in metrics.values()} == {""}
    json.dumps({name: asdict(metric) for name, metric in metrics.items()})


def test_after_some_tasks_only_those_count_and_the_label_says_so() -> None:
    metrics = summary(matrix_of(ROWS), after=2)
    assert metrics["AP"].value == pytest.approx((84 + 90) / 2)
    assert metrics["AF"].value == pytest.approx(80 - 84)
    assert metrics["forgetting-max"].value == pytest.approx(80 - 84)
    assert metrics["FWT"].value == pytest.approx(25 - 20)
    assert metrics["AF"].formula == "mean_{i<t} (m[i][i] - m[t][i])"
    assert {metric.label for metric in metrics.values()} == {"after 2 of 3"}


@pytest.mark.parametrize("after", [1, None])
def test_one_task_has_no_forgetting(after: int | None) -> None:
    matrix = matrix_of(ROWS) if after else matrix_of([[10], [80]], ("a",))
    metrics = summary(matrix, after=after, reference={"a": 1.0})
    for name in ("AF", "AF-ref", "BWT", "FWT", "forgetting-max"):
        assert metrics[name].value is None
        assert metrics[name].reason == "undefined after one task"
    assert metrics["AP"].value == metrics["LA"].value == metrics["AIA"].value == 80
    assert metrics["AP"].label == ("after 1 of 3" if after else "")


def test_before_any_task_only_the_mean_of_row_0_is_defined() -> None:
    metrics = summary(matrix_of(ROWS), after=0)
    assert metrics["AP"].value == 20
    assert metrics["AP"].formula == "mean_b m[0][b]"
    assert metrics["AP"].label == "before any task"
    assert all(metrics[name].value is None for name in metrics if name != "AP")


#    a missing cell -> exactly these are undefined
NEEDS = [
    ((0, "a"), set()),
    ((0, "b"), {"FWT"}),
    ((0, "c"), {"FWT"}),
    ((1, "a"), {"AF", "BWT", "forgetting-max", "LA", "AIA"}),
    ((1, "b"), {"FWT"}),
    ((1, "c"), set()),
    ((2, "a"), {"forgetting-max", "AIA"}),
    ((2, "b"), {"AF", "BWT", "forgetting-max", "LA", "AIA"}),
    ((2, "c"), {"FWT"}),
    ((3, "a"), {"AP", "AF", "AF-ref", "forgetting-max", "BWT", "AIA"}),
    ((3, "b"), {"AP", "AF", "AF-ref", "forgetting-max", "BWT", "AIA"}),
    ((3, "c"), {"AP", "LA", "AIA"}),
]


@pytest.mark.parametrize(("cell", "undefined"), NEEDS)
def test_a_missing_cell_undefines_exactly_what_needs_it(
    cell: tuple[int, str], undefined: set[str]
) -> None:
    whole = matrix_of(ROWS)
    cells = {key: value for key, value in whole.cells.items() if key != cell}
    reference = {"a": 85.0, "b": 95.0}
    metrics = summary(AccuracyMatrix(TASKS, cells), reference=reference)
    full = summary(whole, reference=reference)
    assert {name for name, metric in metrics.items() if metric.value is None} == undefined
    row, column = cell[0], TASKS.index(cell[1]) + 1
    when = "before any task" if row == 0 else f"after {TASKS[row - 1]}"
    for name, metric in metrics.items():
        if name in undefined:
            assert metric.reason == f"missing: m[{row}][{column}] ({cell[1]} {when})"
        else:
            assert metric == full[name]


def test_many_missing_cells_are_counted() -> None:
    metric = summary(AccuracyMatrix(("a", "b", "c", "d"), {}))["AP"]
    assert metric.reason is not None
    assert metric.reason.endswith("and 1 more")
    assert metric.reason.startswith("missing: m[4][1] (a after d), ")


def test_joint_training_has_only_the_last_row() -> None:
    joint = AccuracyMatrix(TASKS, {(3, task): Cell(60, 100) for task in TASKS})
    metrics = summary(joint, reference=dict.fromkeys(TASKS, 70.0))
    assert {name for name, metric in metrics.items() if metric.value is not None} == {
        "AP",
        "AF-ref",
    }


def test_the_reference_is_the_diagonal_of_another_run() -> None:
    other = matrix_of(ROWS)
    assert diagonal(other) == {"a": 80, "b": 90, "c": 60}
    own = summary(other, reference=diagonal(other))
    assert own["AF-ref"].value == own["AF"].value
    assert summary(other)["AF-ref"].reason == (
        "no reference: needs the vanilla run of the same study and seed"
    )
    assert summary(other, reference={"a": 1.0})["AF-ref"].reason == "missing in the reference: b"


def test_fractional_scores_and_impossible_cells() -> None:
    assert Cell(2.7, 3).percent == pytest.approx(90)
    for correct, asked in ((1, 0), (4, 3), (-1, 3), (float("nan"), 3)):
        with pytest.raises(ClmoeError, match="is no accuracy"):
            Cell(correct, asked)
    with pytest.raises(ClmoeError, match="outside the matrix: 4, a; 1, z"):
        AccuracyMatrix(TASKS, {(4, "a"): Cell(1, 1), (1, "z"): Cell(1, 1)})
    with pytest.raises(ClmoeError, match="each once"):
        AccuracyMatrix(("a", "a"), {})
    with pytest.raises(ClmoeError, match="no row 4"):
        summary(matrix_of(ROWS), after=4)


@given(
    st.integers(2, 6).flatmap(
        lambda m: st.lists(
            st.lists(st.integers(0, 100), min_size=m, max_size=m), min_size=m + 1, max_size=m + 1
        )
    )
)
def test_properties_that_hold_for_every_matrix(rows: list[list[int]]) -> None:
    size = len(rows[0])
    tasks = tuple(f"t{i}" for i in range(size))
    found = values(matrix_of([[float(v) for v in row] for row in rows], tasks))
    assert found["BWT"] == pytest.approx(-found["AF"])
    assert found["forgetting-max"] >= found["AF"] - 1e-9
    # AP = LA - AF (M-1)/M: what is left of what was learned.
    assert found["AP"] == pytest.approx(found["LA"] - found["AF"] * (size - 1) / size)
    order = list(range(size - 1, -1, -1))
    renamed = matrix_of([[float(v) for v in row] for row in rows], tuple(f"u{i}" for i in order))
    assert values(renamed) == found


# Table 1 (LLaVA-7B rows) and Table 2 of the paper, arXiv 2503.00413: accuracies of the ten tasks
# in order, then the printed AP and AF.
PAPER = {
    "Vanilla": [19.25, 14.81, 54.59, 56.97, 24.23, 46.2, 27.58, 26.09, 36.47, 18.89, 32.51, 20.69],
    "EWC": [28.12, 23.02, 61.5, 61.08, 26.13, 54.29, 23.65, 32.25, 44.97, 17.83, 37.28, 15.27],
    "MAS": [31.54, 22.09, 60.85, 46.32, 32.48, 56.47, 30.05, 35.69, 42.73, 18.83, 37.71, 14.91],
    "ER": [29.31, 25.74, 63.46, 65.78, 31.92, 58.39, 45.17, 34.55, 46.24, 18.96, 41.95, 10.2],
    "DER": [26.95, 21.43, 64.88, 66.17, 31.01, 55.92, 44.6, 32.85, 47.09, 20.74, 41.16, 11.28],
    "VS": [28.48, 24.09, 61.37, 67.2, 29.56, 54.64, 33.98, 32.91, 45.82, 19.89, 39.79, 12.7],
    "VQACL": [34.14, 32.19, 66.15, 63.0, 33.01, 60.91, 34.64, 38.48, 47.94, 24.42, 43.49, 9.1],
    "CL-MoE": [46.5, 37.18, 75.22, 71.39, 40.9, 69.54, 43.66, 52.68, 55.55, 20.74, 51.34, -0.02],
    "MMoE only": [42.84, 34.59, 72.11, 69.3, 36.76, 65.62, 39.95, 50.02, 53.98, 19.11, 48.43, 3.02],
    "RMoE only": [
        27.36, 25.62, 64.01, 65.96, 31.52, 56.23, 37.17, 38.26, 46.49, 19.7, 41.23, 11.09,
    ],
}  # fmt: skip
REFERENCE = 54.711  # the mean of the common reference row, which is all that can be inferred


@pytest.mark.parametrize("method", PAPER)
def test_the_papers_percentages(method: str) -> None:
    *accuracies, ap, af = PAPER[method]
    tasks = tuple(f"task {i}" for i in range(1, 11))
    cells = {
        (10, task): Cell(value * 100, 10_000) for task, value in zip(tasks, accuracies, strict=True)
    }
    metrics = summary(AccuracyMatrix(tasks, cells), reference=dict.fromkeys(tasks, REFERENCE))
    assert metrics["AP"].value == pytest.approx(ap, abs=0.011)
    assert metrics["AF-ref"].value == pytest.approx(af, abs=0.011)
    assert metrics["AF"].value is None
