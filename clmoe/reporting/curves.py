"""Figures of a comparison: AP over time of each group, and curves over gamma and beta."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from clmoe.metrics.intervals import Spread, over_seeds
from clmoe.reporting.compare import Comparison, Group, label_without
from clmoe.reporting.compared_run import SEED
from clmoe.reporting.figures import MARKERS, PALETTE, STYLE, mean_over_time

Curve = list[tuple[float, Group]]
SWEEPS = {"gamma": "merge.gamma", "beta": "eval.beta"}


def comparison_figures(comparison: Comparison) -> dict[str, Figure]:
    """Figures by file name: ``over_time``, and ``gamma`` and ``beta`` where they were varied."""
    figures = {"over_time": over_time_figure(comparison)}
    for name, key in SWEEPS.items():
        curves = sweep(comparison, key=key)
        if curves:
            figures[name] = curve_figure(curves, key=key, symbol=name, comparison=comparison)
    return figures


def sweep(comparison: Comparison, *, key: str) -> list[Curve]:
    """Every set of two or more groups that differ in one key alone, by its values."""
    families: list[list[Group]] = []
    for group in comparison.groups:
        rest = _without(group, key)
        same = next((f for f in families if _without(f[0], key) == rest), None)
        if same is None:
            families.append([group])
        else:
            same.append(group)
    return [
        sorted(((float(g.first.settings[key]), g) for g in family), key=lambda pair: pair[0])
        for family in families
        if len(family) > 1
    ]


def over_time_figure(comparison: Comparison) -> Figure:
    """AP after t tasks, a line for each group (the paper's Figure 1); whiskers are over seeds.

    A jointly trained model has its last point alone.
    """
    size = len(comparison.tasks)
    with matplotlib.rc_context(STYLE):
        height = max(3.6, 0.19 * len(comparison.groups) + 1.2)
        figure = Figure(figsize=(8.0, height), layout="constrained")
        axes = figure.subplots()
        for number, group in enumerate(comparison.groups):
            points = _over_time(group)
            shift = min(0.03, 0.4 / len(comparison.groups)) * (
                number - (len(comparison.groups) - 1) / 2
            )
            _plot(
                axes,
                [(row + shift, spread) for row, spread in points],
                number=number,
                label=group.label,
            )
        axes.set_xticks(range(1, size + 1))
        axes.set_xlabel("tasks learned")
        axes.set_ylabel("AP of the tasks learned, percent")
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        figure.legend(loc="outside right center", frameon=False)
    return figure


def curve_figure(
    curves: Sequence[Curve], *, key: str, symbol: str, comparison: Comparison
) -> Figure:
    """AP and AF over gamma or beta (the paper's Figure 3), with 95 % intervals over seeds.

    Several curves are told apart by a legend; a single one has its method in the title.
    """
    labels, several = _curve_labels(curves, key=key), len(curves) > 1
    ticks = sorted({x for curve in curves for x, _ in curve})
    with matplotlib.rc_context(STYLE):
        columns = max(1, min(4, 60 // max(map(len, labels))))
        height = 3.0 + (0.2 * math.ceil(len(curves) / columns) if several else 0.0)
        figure = Figure(figsize=(6.4, height), layout="constrained")
        for place, (axes, name) in enumerate(zip(figure.subplots(1, 2), ("AP", "AF"), strict=True)):
            for number, curve in enumerate(curves):
                points = [(x, spread) for x, group in curve if (spread := group.metric(name))]
                label = labels[number] if several and place == 0 else None
                _plot(axes, points, number=number if several else place, label=label)
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.set_xlabel(f"${chr(92)}{symbol}$")
            axes.set_ylabel("percent" if name == "AP" else "percentage points")
            axes.set_title(name)
            axes.margins(y=0.2)
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        if several:
            figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        title = comparison.label if several else f"{labels[0]}, {comparison.label}"
        figure.suptitle(title, fontsize=10)
    return figure


def _curve_labels(curves: Sequence[Curve], *, key: str) -> list[str]:
    """The method of each curve, with its other settings where it has several curves."""
    methods = [curve[0][1].first.method for curve in curves]
    return [
        method if methods.count(method) == 1 else label_without(curve[0][1], key)
        for method, curve in zip(methods, curves, strict=True)
    ]


def _over_time(group: Group) -> list[tuple[int, Spread]]:
    each = [dict(mean_over_time(run.matrix)) for run in group.runs]
    found = []
    for row in each[0]:
        known = [value for aps in each if (value := aps[row]) is not None]
        if len(known) == len(each):
            found.append((row, over_seeds(known)))
    return found


def _plot(
    axes: Any, points: Sequence[tuple[float, Spread]], *, number: int, label: str | None
) -> None:
    spreads = [spread for _, spread in points]
    whiskers = [0.0 if s.high is None else s.high - s.mean for s in spreads]
    axes.errorbar(
        [x for x, _ in points],
        [spread.mean for spread in spreads],
        yerr=whiskers if any(whiskers) else None,
        color=PALETTE[number % len(PALETTE)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle="-" if number < len(PALETTE) else "--",
        markersize=4,
        linewidth=1.4,
        elinewidth=0.9,
        capsize=2,
        label=label,
    )


def _without(group: Group, key: str) -> dict[str, Any]:
    return {k: v for k, v in group.first.settings.items() if k not in (key, SEED)}
