"""What misidentified tasks cost: a run that predicts them against one that is given them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clmoe.metrics.intervals import Difference, paired_difference
from clmoe.reporting.compare import ORACLE, Comparison, Group, mean_scores
from clmoe.reporting.tables import Table, percent, signed

TITLE = "cost of misidentified tasks: AP with true task ids minus AP with predicted ones"


@dataclass(frozen=True)
class OracleCost:
    """A group beside its twin with ``eval.oracle_task``.

    Attributes:
        label: Of the group.
        twin: The run with true task ids, of several seeds the first.
        predicted: AP with predicted task ids, in percent.
        true: AP with true ones.
        cost: The second minus the first; its interval is a paired bootstrap over questions.
        identified: Percent of questions whose task was identified; None where nothing says so.
    """

    label: str
    twin: str
    predicted: float
    true: float
    cost: Difference
    identified: float | None

    def data(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "run": self.twin,
            "predicted": self.predicted,
            "true": self.true,
            "difference": self.cost.mean,
            "interval": {"low": self.cost.low, "high": self.cost.high},
            "identified": self.identified,
        }


def oracle_costs(comparison: Comparison) -> list[OracleCost]:
    """Of each group that has a twin with ``eval.oracle_task``."""
    found = []
    for group in comparison.groups:
        twin = _twin(group, comparison)
        if twin is None:
            continue
        predicted, true = group.metric("AP"), twin.metric("AP")
        if predicted is None or true is None:
            continue
        share = group.metric("identified")
        found.append(
            OracleCost(
                label=group.label,
                twin=twin.first.name,
                predicted=predicted.mean,
                true=true.mean,
                cost=paired_difference(mean_scores(twin), second=mean_scores(group)),
                identified=None if share is None else share.mean,
            )
        )
    return found


def oracle_table(costs: Sequence[OracleCost]) -> list[Table]:
    """A row for each cost; no table without one."""
    rows = [
        [
            cost.label,
            percent(cost.identified),
            percent(cost.predicted, digits=2),
            percent(cost.true, digits=2),
            signed(cost.cost.mean, digits=2),
            f"{cost.cost.low:.2f} to {cost.cost.high:.2f}",
        ]
        for cost in costs
    ]
    columns = ["method", "identified %", "predicted", "true", "cost", "95 % over questions"]
    return [Table(TITLE, columns, rows)] if rows else []


def _twin(group: Group, comparison: Comparison) -> Group | None:
    """The group that differs in nothing but true task ids."""
    wanted = {**group.first.settings, ORACLE: True}
    for other in comparison.groups:
        if other is not group and (other.seeds, other.first.settings) == (group.seeds, wanted):
            return other
    return None
