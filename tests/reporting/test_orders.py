"""AP over the orders of tasks that a method was trained in, by hand."""

from __future__ import annotations

import csv
import io
import json
from math import sqrt

import pytest

from clmoe.reporting.compare import Comparison, compare
from clmoe.reporting.compare_files import render
from clmoe.reporting.compare_tables import paper_side, tables
from clmoe.reporting.orders import over_orders
from tests.reporting.builders import made_run

BACK = ("count", "color")
TITLE = "AP over orders, after all 2 tasks, exact, percent"


@pytest.fixture
def found() -> Comparison:
    """clmoe: forward 62.5 and 37.5 (seeds 0 and 1), reverse 75; vanilla: forward alone."""
    return compare(
        [
            made_run("f0", rows={2: [2, 3]}),
            made_run("f1", seed=1, rows={2: [1, 2]}),
            made_run("r0", rows={2: [3, 3]}, tasks=BACK, protocol__order="reverse"),
            made_run("v", method="vanilla", rows={2: [1, 1]}),
        ]
    )


def test_seeds_are_averaged_first(found: Comparison) -> None:
    (entry,) = over_orders(found)
    assert (entry.label, entry.orders) == ("clmoe", 2)
    assert (entry.mean, entry.lowest, entry.highest) == (62.5, 50.0, 75.0)
    assert entry.sd == pytest.approx(25 / sqrt(2))


def test_the_table(found: Comparison) -> None:
    (table,) = (t for t in tables(found, paper=paper_side(found, which="none")) if t.title == TITLE)
    assert table.columns == ["method", "orders", "mean", "sd", "lowest", "highest"]
    assert table.rows == [["clmoe", "2", "62.50", "17.68", "50.00", "75.00"]]


def test_it_is_in_every_form(found: Comparison) -> None:
    side = paper_side(found, which="none")
    assert TITLE in render(found, paper=side, form="markdown")
    assert TITLE in render(found, paper=side, form="latex")
    (entry,) = json.loads(render(found, paper=side, form="json"))["orders"]
    assert {key: entry[key] for key in ("label", "orders", "mean", "lowest", "highest")} == {
        "label": "clmoe", "orders": 2, "mean": 62.5, "lowest": 50.0, "highest": 75.0,
    }  # fmt: skip
    lines = csv.DictReader(io.StringIO(render(found, paper=side, form="csv")))
    rows = {line["quantity"]: line for line in lines if "orders" in line["quantity"]}
    assert {name: float(row["mean"]) for name, row in rows.items()} == {
        "number of orders": 2, "AP over orders": 62.5, "AP over orders, lowest": 50.0,
        "AP over orders, highest": 75.0,
    }  # fmt: skip
    assert {row["method"] for row in rows.values()} == {"clmoe"}
    assert float(rows["AP over orders"]["sd"]) == pytest.approx(25 / sqrt(2))


def test_methods_and_settings_are_apart() -> None:
    runs = [
        made_run(f"{method}{gamma}{order}", method=method, tasks=tasks, merge__gamma=gamma,
                 protocol__order=order)
        for method, gamma in (("clmoe", 0.7), ("clmoe", 0.9), ("mmoe", 0.7))
        for order, tasks in (("forward", ("color", "count")), (["count", "color"], BACK))
    ]  # fmt: skip
    labels = [entry.label for entry in over_orders(compare(runs))]
    assert labels == ["clmoe merge.gamma=0.7", "clmoe merge.gamma=0.9", "mmoe"]


def test_one_order_under_two_names_is_one() -> None:
    runs = [made_run("a"), made_run("b", protocol__order=["color", "count"])]
    assert over_orders(compare(runs)) == []


def test_without_two_orders_of_a_method_there_is_no_table() -> None:
    runs = [
        made_run("a"),
        made_run("v", method="vanilla", tasks=BACK, protocol__order="reverse"),
    ]
    found = compare(runs)
    side = paper_side(found, which="none")
    assert not any("orders" in table.title for table in tables(found, paper=side))
    assert "orders" not in render(found, paper=side, form="csv")
    assert json.loads(render(found, paper=side, form="json"))["orders"] == []
