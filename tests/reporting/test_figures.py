"""Figures: every number is in them, nothing runs over, and the same numbers give the same bytes."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from clmoe.metrics.accuracy_matrix import AccuracyMatrix, Cell
from clmoe.reporting.compare import compare
from clmoe.reporting.curves import comparison_figures, sweep
from clmoe.reporting.figures import (
    experts_figure,
    matrix_figure,
    mean_over_time,
    over_time_figure,
    run_figures,
    save,
)
from clmoe.reporting.measured import Measured
from clmoe.reporting.paper_numbers import paper_tasks
from clmoe.reporting.understanding import RoutedTask, expert_usage
from tests.reporting.builders import made_run


def measured(size: int = 10) -> Measured:
    tasks = paper_tasks()[:size]
    cells = {
        (row, task): Cell(correct=row + 7 * column, asked=100)
        for row in range(size + 1)
        for column, task in enumerate(tasks)
        if row == 0 or column < row
    }
    return Measured(
        name="clmoe", scorer="exact", matrix=AccuracyMatrix(tasks=tasks, cells=cells), after=size
    )


def usage(*, layers: int, tasks: int = 10) -> list[dict[str, Any]]:
    names = [f"model.language_model.layers.{i}.mlp.gate_proj" for i in range(layers)]
    return expert_usage(
        [
            RoutedTask(
                task,
                {name: [0.3 if i in (t % 8, 7) else 0.07 for i in range(8)] for name in names},
                {name: tuple(sorted({t % 8, 7})) for name in names},
                dict.fromkeys(names, 0.1),
            )
            for t, task in enumerate(paper_tasks()[:tasks])
        ]
    )


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_every_cell_of_the_matrix_has_its_number() -> None:
    axes = matrix_figure(measured(3)).axes[0]
    wanted = ["0.0", "7.0", "14.0", "1.0", "2.0", "9.0", "3.0", "10.0", "17.0"]
    assert texts(axes) == wanted
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "before any task", "after recognition", "after location", "after judge",
    ]  # fmt: skip


def test_expert_weights_and_frames() -> None:
    figure = experts_figure(usage(layers=2, tasks=3))
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.texts]
    assert [axes.get_title() for axes in panels] == list(paper_tasks()[:3])
    assert texts(panels[0])[:8] == [".30", *[".07"] * 6, ".30"]
    styles = [[p.get_linestyle() for p in axes.patches] for axes in panels]
    assert styles == [["-", "-"] * 2, ["-", "--"] * 2, ["-", "--"] * 2]  # 7 is shared from task 2
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["0", "1"]


def test_weights_near_uniform_are_told_apart() -> None:
    """n = 8 and weights of .11 to .15: the shades are far apart, and none hides a frame."""
    weights = [0.11, 0.12, 0.12, 0.13, 0.12, 0.13, 0.12, 0.15]
    figure = experts_figure(
        expert_usage([RoutedTask("color", {"a": weights}, {"a": (3, 7)}, {"a": 0.02})])
    )
    (image,) = figure.axes[0].images
    shades = [float(image.cmap(image.norm(w))[0]) for w in weights]
    assert shades[0] > 0.9
    assert 0.5 < shades[7] < 0.65
    assert {text.get_color() for text in figure.axes[0].texts} == {"black"}
    assert shades[0] > shades[1] > shades[3] > shades[7]


def test_one_expert_has_one_shade() -> None:
    figure = experts_figure(
        expert_usage([RoutedTask("color", {"a": [1.0]}, {"a": (0,)}, {"a": None})])
    )
    assert texts(figure.axes[0]) == ["1.00"]


def test_over_time_starts_where_a_task_is_learned() -> None:
    figure = over_time_figure(measured(3))
    second = figure.axes[1]
    assert second.get_title() == "location"
    learned = next(line for line in second.lines if line.get_linestyle() == "-")
    assert list(learned.get_xdata()) == [2, 3]
    assert list(learned.get_ydata()) == [9.0, 10.0]


def test_mean_over_time_by_hand() -> None:
    assert mean_over_time(measured(2).matrix) == [(1, 1.0), (2, (2 + 9) / 2)]
    run = made_run("m", rows={2: [2, 3]})
    assert mean_over_time(run.matrix) == [(1, None), (2, 62.5)]


@pytest.mark.parametrize(("layers", "tasks"), [(4, 6), (32, 2)])
def test_texts_stay_apart(layers: int, tasks: int) -> None:
    for figure in (matrix_figure(measured()), experts_figure(usage(layers=layers, tasks=tasks))):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = canvas.get_renderer()
        for axes in figure.axes:
            labels = [t for t in axes.get_yticklabels() if t.get_text()]
            boxes = [text.get_window_extent(drawn) for text in (*axes.texts, *labels)]
            assert not [1 for one, other in combinations(boxes, 2) if one.overlaps(other)]


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        figures = run_figures(measured(3), understood={"experts": usage(layers=1, tasks=2)})
        for name, figure in figures.items():
            save(figure, folder=tmp_path / folder, name=name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "experts.png", "experts.svg", "matrix.png", "matrix.svg", "over_time.png", "over_time.svg",
    ]  # fmt: skip
    for name in names:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert first == second
        assert len(first) > 2000
    assert b"<dc:date>" not in (tmp_path / "one" / "matrix.svg").read_bytes()


def values(comparison: Any, key: str) -> list[list[float]]:
    return [[x for x, _ in curve] for curve in sweep(comparison, key=key)]


class TestCurves:
    """Groups that differ in one key alone are a curve."""

    def comparison(self) -> Any:
        gammas = [
            made_run(f"g{g}-{s}", seed=s, merge__gamma=g, rows={1: [2], 2: [right, 3]})
            for g, right in ((0.9, 2), (0.6, 1), (0.7, 3))
            for s in (0, 1)
        ]
        beta = made_run("b", eval__beta=0.1, rows={1: [2], 2: [2, 3]})
        return compare([*gammas, beta, made_run("v", method="vanilla", rows={1: [4], 2: [2, 2]})])

    def test_the_sweep_is_sorted_and_leaves_others_out(self) -> None:
        found = self.comparison()
        assert values(found, "merge.gamma") == [[0.6, 0.7, 0.9]]
        assert values(found, "eval.beta") == [[0.1, 0.5]]

    def test_points_are_the_means(self) -> None:
        figure = comparison_figures(self.comparison())["gamma"]
        ap, af = (axes.lines[0] for axes in figure.axes)
        assert list(ap.get_xdata()) == [0.6, 0.7, 0.9]
        assert list(ap.get_ydata()) == [50.0, 75.0, 62.5]
        assert list(af.get_ydata()) == [25.0, -25.0, 0.0]  # m11 is 50; m21 25, 75, 50
        assert figure.axes[0].get_xlabel() == r"$\gamma$"

    def test_one_family_has_its_method_in_the_title_and_no_legend(self) -> None:
        figure = comparison_figures(self.comparison())["gamma"]
        assert figure.get_suptitle() == "clmoe, after all 2 tasks"
        assert figure.legends == []

    def test_every_method_has_a_line_of_its_own(self) -> None:
        mmoe = [
            made_run(f"m{g}", method="mmoe", merge__gamma=g, rows={1: [2], 2: [1, right]})
            for g, right in ((0.9, 1), (0.8, 3))
        ]
        clmoe = [
            made_run(f"c{g}", merge__gamma=g, rows={1: [2], 2: [2, right]})
            for g, right in ((0.7, 2), (0.9, 4), (0.6, 0))
        ]
        found = compare([*mmoe, made_run("v", method="vanilla"), *clmoe])
        assert values(found, "merge.gamma") == [[0.8, 0.9], [0.6, 0.7, 0.9]]
        figure = comparison_figures(found)["gamma"]
        for axes in figure.axes:
            assert len(axes.lines) == 2
            assert list(axes.get_xticks()) == [0.6, 0.7, 0.8, 0.9]
        assert list(figure.axes[0].lines[0].get_ydata()) == [50.0, 25.0]
        assert list(figure.axes[0].lines[1].get_ydata()) == [25.0, 50.0, 75.0]
        colours = [[line.get_color() for line in axes.lines] for axes in figure.axes]
        assert colours[0] == colours[1]
        assert len(set(colours[0])) == 2
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["mmoe", "clmoe"]
        assert figure.get_suptitle() == "after all 2 tasks"

    def test_two_curves_of_one_method_are_told_apart(self) -> None:
        runs = [
            made_run(f"{g}-{b}", merge__gamma=g, eval__beta=b) for g in (0.6, 0.9) for b in (0, 0.5)
        ]
        (legend,) = comparison_figures(compare(runs))["gamma"].legends
        labels = [text.get_text() for text in legend.get_texts()]
        assert labels == ["clmoe eval.beta=0", "clmoe eval.beta=0.5"]

    def test_without_a_sweep_there_is_no_curve(self) -> None:
        found = compare([made_run("a"), made_run("v", method="vanilla")])
        assert set(comparison_figures(found)) == {"over_time"}

    def test_over_time_has_a_line_for_each_group(self) -> None:
        found = self.comparison()
        figure = comparison_figures(found)["over_time"]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == [group.label for group in found.groups]


@pytest.mark.parametrize(
    "module", ["clmoe.stages.pipeline", "clmoe.stages.report", "clmoe.stages.compare"]
)
def test_nothing_else_imports_matplotlib(module: str) -> None:
    code = f"import sys, {module}; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_comparing_needs_no_torch() -> None:
    code = "import sys, clmoe.stages.compare; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
