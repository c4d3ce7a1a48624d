"""AP over the orders of tasks that a method was trained in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from clmoe.reporting.compare import Comparison, Group, label_without
from clmoe.reporting.compared_run import SEED
from clmoe.reporting.tables import Table, percent

ORDER = "protocol.order"


@dataclass(frozen=True)
class OrderSpread:
    """AP of one method over at least two orders; that of an order is the mean over its seeds.

    Attributes:
        label: The groups' label, without the order.
        orders: How many orders.
        mean: Over the orders, in percent.
        sd: Sample standard deviation (n - 1).
        lowest: The lowest AP.
        highest: The highest AP.
    """

    label: str
    orders: int
    mean: float
    sd: float
    lowest: float
    highest: float

    def quantities(self) -> dict[str, dict[str, float]]:
        """Its numbers by what they are called in a file, each with its mean."""
        return {
            "number of orders": {"mean": self.orders},
            "AP over orders": {"mean": self.mean, "sd": self.sd},
            "AP over orders, lowest": {"mean": self.lowest},
            "AP over orders, highest": {"mean": self.highest},
        }


def over_orders(comparison: Comparison) -> list[OrderSpread]:
    """Of each set of groups that differ in the order alone; none where there are no two orders."""
    families: list[list[Group]] = []
    for group in comparison.groups:
        rest = _without_order(group)
        same = next((f for f in families if _without_order(f[0]) == rest), None)
        if same is None:
            families.append([group])
        else:
            same.append(group)
    found = ((label_without(family[0], ORDER), _aps(family)) for family in families)
    return [
        OrderSpread(label, len(aps), fmean(aps), stdev(aps), min(aps), max(aps))
        for label, aps in found
        if len(aps) > 1
    ]


def orders_table(comparison: Comparison) -> list[Table]:
    """A row for each method with several orders; no table without one."""
    rows = [
        [
            entry.label,
            str(entry.orders),
            *(percent(v, digits=2) for v in (entry.mean, entry.sd, entry.lowest, entry.highest)),
        ]
        for entry in over_orders(comparison)
    ]
    title = f"AP over orders, {comparison.label}, {comparison.scorer}, percent"
    columns = ["method", "orders", "mean", "sd", "lowest", "highest"]
    return [Table(title, columns, rows)] if rows else []


def _aps(groups: list[Group]) -> list[float]:
    """AP of each order: `forward` and the same order by name are one."""
    found: dict[tuple[str, ...], list[float]] = {}
    for group in groups:
        values = [metrics["AP"].value for metrics in group.metrics]
        found.setdefault(group.first.tasks, []).extend(v for v in values if v is not None)
    return [fmean(values) for values in found.values() if values]


def _without_order(group: Group) -> Mapping[str, Any]:
    return {k: v for k, v in group.first.settings.items() if k not in (ORDER, SEED)}
