"""What misidentified tasks cost: a run that predicts them against one that is given them."""

from __future__ import annotations

from clmoe.metrics.intervals import paired_difference
from clmoe.reporting.compare import ORACLE, Comparison, Group, mean_scores
from clmoe.reporting.tables import Table, percent, signed

TITLE = "cost of misidentified tasks: AP with true task ids minus AP with predicted ones"


def oracle_cost(comparison: Comparison) -> list[Table]:
    """A row for each group that has a twin with ``eval.oracle_task``; no table without one.

    The interval is a paired bootstrap over the same questions.
    """
    rows = []
    for group in comparison.groups:
        twin = _twin(group, comparison)
        if twin is None:
            continue
        predicted, true = group.metric("AP"), twin.metric("AP")
        if predicted is None or true is None:
            continue
        cost = paired_difference(mean_scores(twin), second=mean_scores(group))
        share = group.metric("identified")
        rows.append(
            [
                group.label,
                percent(None if share is None else share.mean),
                percent(predicted.mean, digits=2),
                percent(true.mean, digits=2),
                signed(cost.mean, digits=2),
                f"{cost.low:.2f} to {cost.high:.2f}",
            ]
        )
    columns = ["method", "identified %", "predicted", "true", "cost", "95 % over questions"]
    return [Table(TITLE, columns, rows)] if rows else []


def _twin(group: Group, comparison: Comparison) -> Group | None:
    """The group that differs in nothing but true task ids."""
    wanted = {**group.first.settings, ORACLE: True}
    for other in comparison.groups:
        if other is not group and (other.seeds, other.first.settings) == (group.seeds, wanted):
            return other
    return None
