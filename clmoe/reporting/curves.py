"""Figures of a comparison: AP over time of each group, and curves over gamma and beta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from clmoe.metrics.intervals import Spread, over_seeds
from clmoe.reporting.compare import Comparison, Group
from clmoe.reporting.compared_run import SEED
from clmoe.reporting.figures import MARKERS, PALETTE, STYLE, mean_over_time

SWEEPS = {"gamma": "merge.gamma", "beta": "eval.beta"}


def comparison_figures(comparison: Comparison) -> dict[str, Figure]:
    """Figures by file name: ``over_time``, and ``gamma`` and ``beta`` where they were varied."""
    figures = {"over_time": over_time_figure(comparison)}
    for name, key in SWEEPS.items():
        curve = sweep(comparison, key=key)
        if curve:
            figures[name] = curve_figure(curve, symbol=name, comparison=comparison)
    return figures


def sweep(comparison: Comparison, *, key: str) -> list[tuple[float, Group]]:
    """The largest set of groups that differ in one key alone, by its values; empty below two."""
    families: list[list[Group]] = []
    for group in comparison.groups:
        rest = _without(group, key)
        same = next((f for f in families if _without(f[0], key) == rest), None)
        if same is None:
            families.append([group])
        else:
            same.append(group)
    largest = max(families, key=len)
    if len(largest) < 2:
        return []
    return sorted(((float(g.first.settings[key]), g) for g in largest), key=lambda pair: pair[0])


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
    curve: Sequence[tuple[float, Group]], *, symbol: str, comparison: Comparison
) -> Figure:
    """AP and AF over gamma or beta (the paper's Figure 3), with 95 % intervals over seeds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        for number, (axes, name) in enumerate(
            zip(figure.subplots(1, 2), ("AP", "AF"), strict=True)
        ):
            points = [(x, spread) for x, group in curve if (spread := group.metric(name))]
            _plot(axes, points, number=number, label=None)
            axes.set_xticks([x for x, _ in curve], [f"{x:g}" for x, _ in curve])
            axes.set_xlabel(f"${chr(92)}{symbol}$")
            axes.set_ylabel("percent" if name == "AP" else "percentage points")
            axes.set_title(name)
            axes.margins(y=0.2)
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        figure.suptitle(f"{curve[0][1].first.method}, {comparison.label}", fontsize=10)
    return figure


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
