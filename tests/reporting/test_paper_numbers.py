"""The paper's tables as data: what they say, what they contradict, and when they apply."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

from clmoe.recipe.presets import PRESETS
from clmoe.reporting.paper_numbers import _tables, paper_row, paper_tasks, vlt5_rows
from tests.reporting.builders import PAPER_SETTINGS


def row(method: str, *, reverse: bool = False, **changes: Any) -> Any:
    preset = PRESETS[method].values
    settings = {**PAPER_SETTINGS, **preset, **{k.replace("__", "."): v for k, v in changes.items()}}
    tasks = paper_tasks()[::-1] if reverse else paper_tasks()
    return paper_row(method, settings=settings, tasks=tasks)


def all_rows() -> dict[str, dict[str, float]]:
    tables = _tables()
    return {**tables["table1"]["LLaVA-7B"], **tables["table2"]}


def test_ten_tasks_in_the_order_of_the_paper() -> None:
    assert len(paper_tasks()) == 10
    assert (paper_tasks()[0], paper_tasks()[-1]) == ("recognition", "causal")


def test_printed_ap_is_the_mean_of_its_row_but_for_two() -> None:
    odd = {
        source
        for source, values in (*all_rows().items(), *_tables()["table1"]["VL-T5"].items())
        if "AP" in values and abs(values["AP"] - fmean(values[t] for t in paper_tasks())) > 0.0055
    }
    assert odd == {"MAS", "VS"}


def test_af_was_computed_against_one_reference() -> None:
    sums = {
        name: values["AF"] + fmean(values[t] for t in paper_tasks()[:-1])
        for name, values in all_rows().items()
        if "AF" in values
    }
    assert len(sums) == 12
    assert all(abs(total - 54.711) < 0.006 for total in sums.values()), sums


@pytest.mark.parametrize(
    ("method", "changes", "source", "ap", "af"),
    [
        ("clmoe", {}, "Table 1, CL-MoE", 51.34, -0.02),
        ("vanilla", {}, "Table 1, Vanilla", 32.51, 20.69),
        ("multitask", {}, "Table 1, Multitask", 60.31, None),
        ("mmoe", {}, "Table 2, MMoE only", 48.43, 3.02),
        ("rmoe", {}, "Table 2, RMoE only", 41.23, 11.09),
        ("clmoe", {"adapter__experts": 4}, "Table 3, n = 4", 50.19, 1.15),
        ("clmoe", {"adapter__experts": 1, "route__top_k": 1}, "Table 3, n = 1", 32.51, 20.69),
        ("clmoe", {"route__top_k": 3}, "Table 3, K = 3", 51.22, 0.3),
        ("clmoe", {"reverse": True}, "Table 4, CL-MoE, reverse", 57.08, -1.44),
        ("vqacl", {"reverse": True}, "Table 4, VQACL, reverse", 50.73, 4.91),
    ],
)
def test_rows_by_settings(
    method: str, changes: dict[str, Any], source: str, ap: float, af: float | None
) -> None:
    found = row(method, **changes)
    assert (found.source, found.ap, found.af) == (source, ap, af)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("clmoe", {"merge__gamma": 0.9}),  # Figure 3 is a curve without numbers
        ("clmoe", {"eval__beta": 0.1}),
        ("clmoe", {"adapter__experts": 4, "route__top_k": 1}),
        ("clmoe", {"adapter__experts": 16}),
        ("clmoe", {"eval__oracle_task": True}),
        ("clmoe", {"index__kind": "lda"}),
        ("clmoe", {"index__noise": 0.2}),
        ("clmoe", {"reverse": True, "merge__gamma": 0.9}),
        ("clmoe", {"merge__rule": "none"}),
        ("clmoe", {"protocol__joint": True}),
        ("clmoe", {"strategy__kind": "er"}),
        ("clmoe", {"reverse": True, "merge__rule": "none"}),
        ("vanilla", {"strategy__kind": "er"}),
        ("er", {"strategy__kind": "der"}),
        ("er", {"protocol__per_task": True}),
        ("multitask", {"protocol__joint": False}),
        ("rmoe", {"merge__rule": "roles"}),
        ("mmoe", {"eval__beta": 0.5}),
        ("mmoe", {"merge__gamma": 0.9}),
        ("vanilla", {"reverse": True}),
        ("ema", {}),
        ("moelora", {}),
    ],
)
def test_no_row_where_the_paper_says_nothing(method: str, changes: dict[str, Any]) -> None:
    assert row(method, **changes) is None


def test_no_row_for_other_tasks() -> None:
    three = paper_tasks()[:3]
    assert paper_row("clmoe", settings=PAPER_SETTINGS, tasks=three) is None


def test_caveats_stand_with_their_rows() -> None:
    assert "36.98" in " ".join(row("vanilla").caveats)
    assert "no AP for Multitask" in " ".join(row("multitask").caveats)
    assert "no target to two decimals" in " ".join(row("er").caveats)
    assert "uniform momentum" in " ".join(row("clmoe", adapter__experts=1).caveats)
    assert row("clmoe").caveats == ()


def test_the_vlt5_half_is_apart() -> None:
    names = [found.source for found in vlt5_rows()]
    assert names == ["Vanilla", "EWC", "MAS", "ER", "DER", "VS", "VQACL", "Multitask"]
    assert {found.ap for found in vlt5_rows()}.isdisjoint({row("clmoe").ap, row("vanilla").ap})
