"""A comparison as CSV, Markdown, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from clmoe.errors import UsageError
from clmoe.metrics.intervals import Difference, Spread
from clmoe.reporting.compare import METRICS, Comparison, Group
from clmoe.reporting.compare_tables import Side, notes, tables
from clmoe.reporting.latex import NEEDS, latex
from clmoe.reporting.orders import over_orders
from clmoe.reporting.paper_numbers import PAPER, PAPER_VLT5, PaperRow, paper_tasks, vlt5_rows

FORMATS = ("table", "csv", "markdown", "latex", "json")
SUFFIXES = {".csv": "csv", ".md": "markdown", ".tex": "latex", ".json": "json"}
_COLUMNS = (
    "method", "quantity", "seeds", "mean", "sd", "low", "high", "difference",
    "difference_low", "difference_high", "questions", PAPER, PAPER_VLT5, "why",
)  # fmt: skip


def form_of(suffix: str) -> str:
    """The format that a file's suffix stands for.

    Raises:
        UsageError: It stands for none.
    """
    if suffix not in SUFFIXES:
        raise UsageError(
            f"the suffix {suffix!r} tells no format",
            hint=f"name the file {', '.join(f'*{s}' for s in SUFFIXES)}, or give --format",
        )
    return SUFFIXES[suffix]


def render(comparison: Comparison, *, paper: Side, form: str) -> str:
    """The whole comparison as text.

    Args:
        comparison: What was measured.
        paper: What the paper prints.
        form: ``csv``: one line for each group and quantity, with every interval; ``markdown`` and
            ``latex``: the tables and notes; ``json``: `data`.
    """
    if form == "csv":
        return _csv(comparison, paper)
    if form == "json":
        return json.dumps(data(comparison, paper=paper), indent=1, ensure_ascii=False) + "\n"
    found, told = tables(comparison, paper=paper), notes(comparison, paper=paper)
    if form == "markdown":
        return "\n".join([*(t.markdown() for t in found), *(f"- {line}" for line in told), ""])
    assert form == "latex"
    return "\n".join([NEEDS, *(latex(table) for table in found), *(f"% {line}" for line in told)])


def data(comparison: Comparison, *, paper: Side) -> dict[str, Any]:
    """Everything as JSON values: measured under ``groups``, the paper's under ``paper``."""
    groups = []
    for group in comparison.groups:
        found = comparison.differences.get(group.label)
        groups.append(
            {
                "label": group.label,
                "method": group.first.method,
                "runs": [run.name for run in group.runs],
                "seeds": list(group.seeds),
                "accuracy": {t: _plain(group.accuracy(t)) for t in comparison.tasks},
                "metrics": {
                    name: {
                        **(_plain(group.metric(name)) or {"mean": None}),
                        "reason": group.reason(name),
                    }
                    for name in METRICS
                },
                "difference": None if found is None else asdict(found),
                "trained_parameters": group.first.parameters,
                "extra_bytes": group.first.extra_bytes,
                "extra": None if group.first.extra is None else dict(group.first.extra),
                "settings": dict(group.first.settings),
            }
        )
    return {
        "tasks": list(comparison.tasks),
        "after": comparison.groups[0].first.after,
        "scorer": comparison.scorer,
        "baseline": comparison.baseline.label,
        "groups": groups,
        "orders": [asdict(entry) for entry in over_orders(comparison)],
        "settings_that_differ": list(comparison.varying),
        "paper": {
            PAPER: {label: asdict(row) for label, row in paper.llava.items()},
            PAPER_VLT5: {row.source: asdict(row) for row in _vlt5(paper)},
        },
        "notes": list(notes(comparison, paper=paper)),
    }


def _csv(comparison: Comparison, paper: Side) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for group in comparison.groups:
        writer.writerows(_lines(comparison, group, paper.llava.get(group.label)))
    for entry in over_orders(comparison):
        for name, values in entry.quantities().items():
            writer.writerow({"method": entry.label, "quantity": name, **values})
    for row in _vlt5(paper):
        for name, value in _quantities(row).items():
            writer.writerow(
                {"method": f"{PAPER_VLT5}: {row.source}", "quantity": name, PAPER_VLT5: value}
            )
    return text.getvalue()


def _lines(comparison: Comparison, group: Group, row: PaperRow | None) -> list[dict[str, Any]]:
    printed = {} if row is None else _quantities(row)
    found = comparison.differences.get(group.label)
    lines = []
    for name in (*comparison.tasks, *METRICS):
        task = name in comparison.tasks
        spread = group.accuracy(name) if task else group.metric(name)
        difference: Difference | None = None
        if found is not None:
            difference = found.overall if name == "AP" else found.tasks.get(name)
        line: dict[str, Any] = {
            "method": group.label,
            "quantity": name,
            "seeds": len(group.runs),
            PAPER: printed.get(name),
            "why": None if task else group.reason(name),
        }
        if spread is not None:
            line |= {k: getattr(spread, k) for k in ("mean", "sd", "low", "high")}
        if difference is not None:
            line |= {
                "difference": difference.mean,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "questions": difference.questions,
            }
        lines.append(line)
    return lines


def _quantities(row: PaperRow) -> dict[str, float | None]:
    """The paper's numbers by our names: its AF stands at AF-ref, which is what it computed."""
    found: dict[str, float | None] = {t: row.accuracy[t] for t in paper_tasks() if row.accuracy}
    return {**found, "AP": row.ap, "AF-ref": row.af}


def _vlt5(paper: Side) -> Sequence[PaperRow]:
    return vlt5_rows() if paper.vlt5 else ()


def _plain(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else asdict(spread)
