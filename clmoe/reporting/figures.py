"""Figures of one run, as PNG and SVG: the matrix, accuracy over time, experts.

Nothing else imports matplotlib; figures are drawn without its global state (no pyplot, no
display), and the same numbers give the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from clmoe.metrics.accuracy_matrix import AccuracyMatrix
from clmoe.reporting.measured import Measured

STYLE = {
    "svg.hashsalt": "clmoe",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100.0,
    "savefig.dpi": 150.0,
}
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7A00",
)  # fmt: skip
"""Okabe and Ito's colours (2008), which people with any colour vision tell apart; its yellow
darkened, for lines on white."""
MARKERS = "osD^vPX*<>"
_DARK = 0.46
_GREY = "#777777"
_LAYER = re.compile(r"layers\.(\d+)\.?(.*)$")


def run_figures(measured: Measured, *, understood: Mapping[str, Any]) -> dict[str, Figure]:
    """Every figure of a run by its file name; experts only where the method routes."""
    figures = {"matrix": matrix_figure(measured), "over_time": over_time_figure(measured)}
    if understood["experts"]:
        figures["experts"] = experts_figure(understood["experts"])
    return figures


def save(figure: Figure, *, folder: Path, name: str) -> tuple[Path, ...]:
    """Write a figure as ``name.png`` and ``name.svg``, without dates, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = folder / f"{name}.{suffix}"
            partial = folder / f".{name}.new.{suffix}"
            figure.savefig(partial, metadata=metadata)
            partial.replace(path)
            paths.append(path)
    return tuple(paths)


def matrix_figure(measured: Measured) -> Figure:
    """m[a][b] as a heat map with its numbers; a missing cell is empty."""
    matrix = measured.matrix
    tasks, size = matrix.tasks, len(matrix.tasks)
    rows = [
        row
        for row in range(size + 1)
        if any(matrix.percent(row, task) is not None for task in tasks)
    ]
    values = [[matrix.percent(row, task) for task in tasks] for row in rows]
    with matplotlib.rc_context(STYLE):
        width, height = 2.6 + 0.62 * size, 1.7 + 0.36 * len(rows)
        figure = Figure(figsize=(max(width, 5.4), height), layout="constrained")
        axes = figure.subplots()
        shades = Normalize(0, 100)
        heat_map(axes, values, shades=shades, digits=1)
        axes.set_xticks(range(size), tasks, rotation=40, ha="right", rotation_mode="anchor")
        names = ["before any task" if row == 0 else f"after {tasks[row - 1]}" for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_xlabel("questions of task")
        axes.set_title(f"{measured.title}: accuracy, {measured.scorer}, percent")
        bar = figure.colorbar(ScalarMappable(shades, "cividis"), ax=axes, shrink=0.9, pad=0.02)
        bar.outline.set_visible(False)
    return figure


def over_time_figure(measured: Measured) -> Figure:
    """Accuracy on each task after each task learned, and the mean of the tasks learned by then.

    As the paper's Figure 1 has it for the mean. A dashed line is the accuracy before any task.
    """
    matrix = measured.matrix
    tasks, size = matrix.tasks, len(matrix.tasks)
    columns = min(4, size + 1)
    lines = math.ceil((size + 1) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.2 * columns + 0.6, 1.75 * lines + 0.7), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        panels = [axes for row in grid for axes in row]
        for number, (axes, task) in enumerate(zip(panels, tasks, strict=False), start=1):
            points = [
                (row, value)
                for row in range(1, size + 1)
                if (value := matrix.percent(row, task)) is not None
            ]
            learned = [point for point in points if point[0] >= number]
            ahead = [point for point in points if point[0] <= number]
            _line(axes, ahead if len(ahead) > 1 else [], style=":", marker="")
            _line(axes, learned, style="-", marker="o")
            zero = matrix.percent(0, task)
            if zero is not None:
                axes.axhline(zero, color=_GREY, linestyle="--", linewidth=1)
            axes.set_title(task)
        mean = [(row, value) for row, value in mean_over_time(matrix) if value is not None]
        _line(panels[size], mean, style="-", marker="o", color="#000000")
        panels[size].set_title("mean of tasks learned", fontweight="bold")
        for axes in panels[size + 1 :]:
            axes.set_visible(False)
        for axes in panels[: size + 1]:
            axes.set_ylim(-3, 103)
            axes.set_xlim(0.5, size + 0.5)
            axes.set_xticks(_ticks(size))
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
            axes.tick_params(labelbottom=True)
        figure.supxlabel("tasks learned", fontsize=9)
        figure.supylabel(f"accuracy, {measured.scorer}, percent", fontsize=9)
        told = [
            Line2D([], [], color=PALETTE[0], marker="o", markersize=3.5, label=measured.title),
            Line2D([], [], color=_GREY, linestyle="--", linewidth=1, label="before any task"),
        ]
        figure.legend(handles=told, loc="outside upper center", ncols=2, frameon=False)
    return figure


def experts_figure(experts: Sequence[Mapping[str, Any]]) -> Figure:
    """w_T of every router and task; E_t is framed by its role (Eq 10).

    Shades run from the smallest weight (else weights near 1 / n would be alike) to the largest,
    which is no darker than a frame and a number show on.
    """
    tasks = [entry["task"] for entry in experts[0]["tasks"]]
    layers, count = len(experts), len(experts[0]["users"])
    columns = min(5 if count <= 8 else 3, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    weights = [w for router in experts for entry in router["tasks"] for w in entry["weights"]]
    lowest, highest = min(weights), max(weights)
    shades = Normalize(lowest, 2 * highest - lowest)  # the lighter half of the greys
    frames = {"specific": ("#D55E00", "-"), "shared": ("#0072B2", "--")}
    with matplotlib.rc_context(STYLE):
        width, height = 0.34 * count + 0.5, 0.24 * layers + 0.55
        figure = Figure(
            figsize=(max(columns * width + 1.3, 5.0), lines * height + 1.0), layout="constrained"
        )
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        panels = [axes for row in grid for axes in row]
        for place, (axes, task) in enumerate(zip(panels, tasks, strict=False)):
            entries = [router["tasks"][place] for router in experts]
            values = [entry["weights"] for entry in entries]
            heat_map(axes, values, shades=shades, digits=2, cmap="Greys", size=6.0)
            for row, entry in enumerate(entries):
                for expert in entry["experts"]:
                    colour, style = frames[entry["roles"][expert]]
                    corner = (expert - 0.44, row - 0.44)
                    axes.add_patch(
                        Rectangle(
                            corner, 0.88, 0.88, fill=False,
                            edgecolor=colour, linestyle=style, linewidth=1.4,
                        )
                    )  # fmt: skip
            axes.set_title(task)
            axes.set_xticks(range(count))
            axes.set_yticks(range(layers), _layers([r["router"] for r in experts]))
            axes.tick_params(labelbottom=True, length=0, labelsize=7)
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        figure.supxlabel("expert", fontsize=9)
        figure.supylabel("layer", fontsize=9)
        names = {
            "specific": "top K, specific: new to the task",
            "shared": "top K, shared: used before",
        }
        legend = [
            Patch(fill=False, edgecolor=colour, linestyle=style, linewidth=1.4, label=names[role])
            for role, (colour, style) in frames.items()
        ]
        figure.legend(handles=legend, loc="outside upper center", ncols=2, frameon=False)
    return figure


def heat_map(
    axes: Any,
    values: Sequence[Sequence[float | None]],
    *,
    shades: Normalize,
    digits: int,
    cmap: str = "cividis",
    size: float = 8.0,
) -> None:
    """Coloured cells with their numbers, dark on light and light on dark; None is left empty."""
    filled = [[math.nan if v is None else v for v in row] for row in values]
    axes.imshow(filled, cmap=cmap, norm=shades, aspect="auto")
    colours = matplotlib.colormaps[cmap]
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value is None:
                continue
            red, green, blue, _ = colours(shades(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < _DARK
            text = f"{value:.{digits}f}"
            text = text[1:] if digits == 2 and text.startswith("0.") else text
            axes.text(
                x, y, text, ha="center", va="center", fontsize=size,
                color="white" if dark else "black",
            )  # fmt: skip
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)


def mean_over_time(matrix: AccuracyMatrix) -> list[tuple[int, float | None]]:
    """(t, AP after t tasks) for every t; None where a cell of the row is missing."""
    found = []
    for row in range(1, len(matrix.tasks) + 1):
        values = [matrix.percent(row, task) for task in matrix.tasks[:row]]
        known = [value for value in values if value is not None]
        found.append((row, sum(known) / row if len(known) == row else None))
    return found


def _line(
    axes: Any,
    points: Sequence[tuple[int, float]],
    *,
    style: str,
    marker: str,
    color: str = PALETTE[0],
) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, linestyle=style, marker=marker, markersize=3.5, color=color, linewidth=1.4)


def _ticks(size: int) -> list[int]:
    step = max(1, math.ceil(size / 10))
    return list(range(1, size + 1, step if size <= 6 else max(step, 2)))


def _layers(routers: Sequence[str]) -> list[str]:
    """The number of each router's layer, with the linear's name where a layer has several."""
    found = [_LAYER.search(router) for router in routers]
    if not all(found):
        return list(routers)
    numbers = [match[1] for match in found if match]
    if len(set(numbers)) == len(numbers):
        return numbers
    return [f"{match[1]} {match[2].split('.')[-1]}" for match in found if match]
