"""The paper's own numbers (arXiv 2503.00413, tables 1 to 4), and what is to be said of them.

They are printed beside what was measured, in columns and blocks of their own, and enter no mean,
difference or interval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

from clmoe.reporting.compared_run import departures

PAPER = "paper, LLaVA-7B"
PAPER_VLT5 = "paper, VL-T5"

AF_CAVEAT = (
    "the paper's AF was computed against one common fine-tuning reference (AF plus the mean of "
    "the first nine accuracies is 54.71 in every LLaVA row), so it stands beside AF-ref"
)
DATA_CAVEAT = (
    "the paper's numbers are of VQA v2 and LLaVA-1.5-7B, which has seen VQA v2 in its own "
    "instruction tuning; nothing here measured them"
)
_CAVEATS = {
    "Vanilla": "the paper's text says 36.98 for Vanilla's AP, Table 1 says 32.51, its row's mean",
    "Multitask": "the paper prints no AP for Multitask; the mean of its row stands in its place",
    "n=1": "Table 3's n = 1 equals Vanilla; by Eq 10 to 12 one expert is one LoRA with uniform "
    "momentum",
}
_NO_FRACTIONS = (
    "the accuracies of this row of Table 1 are not whole numbers of right answers over the test "
    "sizes: no target to two decimals"
)
_VLT5_CAVEATS = (
    "VL-T5: MAS prints AP 20.56, its row's mean is 20.63; VS prints 34.03, its row's mean is 30.63"
)
_WHOLE_QUESTIONS = {"Vanilla", "VQACL", "CL-MoE", "Multitask"}
_TABLE_1 = {
    "vanilla": "Vanilla",
    "ewc": "EWC",
    "mas": "MAS",
    "er": "ER",
    "der": "DER",
    "vs": "VS",
    "vqacl": "VQACL",
    "clmoe": "CL-MoE",
    "multitask": "Multitask",
}
_TABLE_2 = {"mmoe": "MMoE only", "rmoe": "RMoE only"}
_SETTINGS: dict[str, Any] = {
    "adapter.experts": 8,
    "route.top_k": 2,
    "merge.gamma": 0.7,
    "eval.beta": 0.5,
}
_COUNTED = {
    "clmoe": tuple(_SETTINGS),
    "mmoe": ("adapter.experts", "route.top_k", "merge.gamma"),
    "rmoe": ("adapter.experts", "eval.beta"),
}
_ELSEWHERE: dict[str, Any] = {
    "index.kind": "centroid",
    "index.soft": 0.0,
    "index.noise": 0.0,
    "eval.oracle_task": False,
    "protocol.task_known": False,
}


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper.

    Attributes:
        source: Where it stands, e.g. ``Table 1, CL-MoE``.
        accuracy: Percent on each task; empty where the paper prints AP and AF alone.
        ap: AP, or None.
        af: What the paper calls AF; see `AF_CAVEAT`. None where it prints none.
        caveats: What is to be said of this row.
    """

    source: str
    accuracy: Mapping[str, float]
    ap: float | None
    af: float | None
    caveats: tuple[str, ...] = ()


@cache
def _tables() -> dict[str, Any]:
    text = files("clmoe.reporting").joinpath("paper_tables.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def paper_tasks() -> tuple[str, ...]:
    """The paper's ten tasks in its order."""
    row = _tables()["table1"]["LLaVA-7B"]["Vanilla"]
    return tuple(name for name in row if name not in ("AP", "AF"))


def paper_row(method: str, *, settings: Mapping[str, Any], tasks: Sequence[str]) -> PaperRow | None:
    """What the paper prints for LLaVA-7B with these settings; None where it prints nothing.

    Args:
        method: ``method.name``.
        settings: The recipe's values by dotted key. Keys that the paper does not tell apart (the
            learning rate, the scope of w_T) are not looked at; where others are not what the
            method's name stands for, there is no row but one that the paper has for them.
        tasks: The tasks in the order of training. Anything but the paper's ten, in its order or
            reversed, has no row.
    """
    order = {paper_tasks(): "forward", paper_tasks()[::-1]: "reverse"}.get(tuple(tasks))
    usual = all(settings.get(key, value) == value for key, value in _ELSEWHERE.items())
    if order is None or not usual:
        return None
    counted = _COUNTED.get(method, ())
    if departures(method, settings=settings).keys() - set(counted):
        return None
    others = {key: settings[key] for key in counted if settings[key] != _SETTINGS[key]}
    if order == "reverse":
        return None if others else _table_4(method)
    if others:
        return _table_3(others) if method == "clmoe" else None
    if method in _TABLE_2:
        return _row(_tables()["table2"][_TABLE_2[method]], f"Table 2, {_TABLE_2[method]}", ())
    if method not in _TABLE_1:
        return None
    name = _TABLE_1[method]
    caveats = [_CAVEATS[name]] if name in _CAVEATS else []
    caveats += [] if name in _WHOLE_QUESTIONS else [_NO_FRACTIONS]
    return _row(_tables()["table1"]["LLaVA-7B"][name], f"Table 1, {name}", tuple(caveats))


def vlt5_rows() -> tuple[PaperRow, ...]:
    """The VL-T5 half of Table 1."""
    rows = _tables()["table1"]["VL-T5"]
    return tuple(_row(values, name, ()) for name, values in rows.items())


def vlt5_caveats() -> tuple[str, ...]:
    """What is to be said of the VL-T5 half."""
    return (_VLT5_CAVEATS, _CAVEATS["Multitask"])


def _row(values: Mapping[str, float], source: str, caveats: tuple[str, ...]) -> PaperRow:
    accuracy = {task: values[task] for task in paper_tasks()}
    ap = values["AP"] if "AP" in values else round(fmean(accuracy.values()), 2)
    return PaperRow(source, accuracy, ap, values.get("AF"), caveats)


def _table_3(others: Mapping[str, Any]) -> PaperRow | None:
    """N or K other than the paper's; with n = 1 there is nothing for K to choose."""
    changed = set(others) - ({"route.top_k"} if others.get("adapter.experts") == 1 else set())
    symbols = {"adapter.experts": "n", "route.top_k": "K"}
    if len(changed) != 1 or not changed <= set(symbols):
        return None
    key = changed.pop()
    found = _tables()["table3"][symbols[key]].get(str(others[key]))
    if found is None:
        return None
    caveats = (_CAVEATS["n=1"],) if others.get("adapter.experts") == 1 else ()
    return PaperRow(f"Table 3, {symbols[key]} = {others[key]}", {}, found[0], found[1], caveats)


def _table_4(method: str) -> PaperRow | None:
    name = _TABLE_1.get(method, "")
    found = _tables()["table4"].get(name)
    if found is None or name == "columns":
        return None
    ap, af = found["reverse"]
    return PaperRow(f"Table 4, {name}, reverse", {}, ap, af)
