"""A comparison as tables for people; measured and printed-in-the-paper never in one column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clmoe.metrics.intervals import Difference, Spread
from clmoe.reporting.compare import (
    METRICS,
    Comparison,
    Group,
    value_text,
)
from clmoe.reporting.oracle_cost import oracle_costs, oracle_table
from clmoe.reporting.orders import orders_table
from clmoe.reporting.paper_numbers import (
    AF_CAVEAT,
    DATA_CAVEAT,
    PAPER,
    PAPER_VLT5,
    PaperRow,
    paper_row,
    paper_tasks,
    vlt5_caveats,
    vlt5_rows,
)
from clmoe.reporting.tables import DASH, Table, percent, signed

OTHER_TASKS = "the paper's numbers are left out: it reports its ten tasks, in its order or reversed"


@dataclass(frozen=True)
class Side:
    """What the paper prints for a comparison.

    Attributes:
        llava: Label of a group -> its row; only groups that have one.
        vlt5: Whether the block of VL-T5 was asked for.
        asked: Whether any of the paper's numbers were.
    """

    llava: Mapping[str, PaperRow]
    vlt5: bool
    asked: bool


def paper_side(comparison: Comparison, *, which: str) -> Side:
    """Choose the paper's numbers.

    Args:
        comparison: The measured side.
        which: ``llava``, ``all`` (the VL-T5 half too) or ``none``.
    """
    rows: dict[str, PaperRow] = {}
    for group in comparison.groups if which != "none" else ():
        run = group.first
        found = paper_row(run.method, settings=run.settings, tasks=run.tasks)
        if found is not None:
            rows[group.label] = found
    return Side(rows, vlt5=which == "all", asked=which != "none")


def tables(comparison: Comparison, *, paper: Side) -> tuple[Table, ...]:
    """Every table, the most telling first."""
    found = [_headline(comparison, paper), _accuracy(comparison), _metrics(comparison, paper)]
    if comparison.differences:
        found.append(_differences(comparison))
    found += [
        *orders_table(comparison),
        *oracle_table(oracle_costs(comparison)),
        *_cost(comparison),
        *_settings(comparison),
    ]
    blocks = [_block(PAPER, [(label, row) for label, row in paper.llava.items() if row.accuracy])]
    if paper.vlt5:
        blocks.append(_block(PAPER_VLT5, [(row.source, row) for row in vlt5_rows()]))
    return tuple([*found, *(block for block in blocks if block.rows)])


def notes(comparison: Comparison, *, paper: Side) -> tuple[str, ...]:
    """What the tables cannot say: why a cell is a dash, what an interval is, and caveats."""
    lines = []
    if any(len(group.runs) > 1 for group in comparison.groups):
        lines.append("±: half the 95 % t-interval of the mean over seeds")
    if comparison.differences:
        lines.append(
            f"differences are to {comparison.baseline.label}, in percentage points; their 95 % "
            "intervals are a paired bootstrap over the same questions inside each task"
            + ("; scores were averaged over the seeds that both have" if lines else "")
        )
    lines += [*_reasons(comparison), *_unknown_cost(comparison)]
    orders = {group.first.tasks for group in comparison.groups}
    if len(orders) > 1:
        lines.append("the runs learned the tasks in different orders")
    if paper.llava:
        lines += [f"{PAPER}: {text}" for text in (DATA_CAVEAT, AF_CAVEAT)]
        lines += [f"{row.source}: {text}" for row in paper.llava.values() for text in row.caveats]
    elif paper.asked and all(set(tasks) != set(paper_tasks()) for tasks in orders):
        lines.append(OTHER_TASKS)
    if paper.vlt5:
        lines += [f"{PAPER_VLT5}: {text}" for text in vlt5_caveats()]
    return tuple(dict.fromkeys(lines))


def _headline(comparison: Comparison, paper: Side) -> Table:
    several = any(len(group.runs) > 1 for group in comparison.groups)
    columns = ["method", "seeds", "AP", *(["sd", "95 % over seeds"] if several else [])]
    if comparison.differences:
        columns += [f"minus {comparison.baseline.label}", "95 % over questions"]
        columns += ["95 % of it over seeds"] if several else []
    columns += [f"AP, {PAPER}"] if paper.llava else []
    rows = []
    for group in comparison.groups:
        ap, found = group.metric("AP"), comparison.differences.get(group.label)
        row = [group.label, str(len(group.runs)), _number(ap, "mean")]
        row += [_number(ap, "sd"), _interval(ap)] if several else []
        if comparison.differences:
            overall = None if found is None else found.overall
            row += [DASH if overall is None else signed(overall.mean, digits=2), _interval(overall)]
            row += [_interval(None if found is None else found.over_seeds)] if several else []
        row += [_of_paper(paper, group, "ap")] if paper.llava else []
        rows.append(row)
    return Table(f"AP {comparison.label}, {comparison.scorer}, percent", columns, rows)


def _accuracy(comparison: Comparison) -> Table:
    rows = [
        [group.label, *(_spread(group.accuracy(task)) for task in comparison.tasks)]
        for group in comparison.groups
    ]
    title = f"accuracy {comparison.label}, {comparison.scorer}, percent"
    return Table(title, ["method", *comparison.tasks], rows)


def _metrics(comparison: Comparison, paper: Side) -> Table:
    """The paper's AF has a column of its own beside AF-ref, which is what it computed."""
    place = METRICS.index("AF-ref") + 2
    columns = ["method", *METRICS]
    if paper.llava:
        columns.insert(place, f"AF-ref, {PAPER}")
    rows = []
    for group in comparison.groups:
        row = [group.label, *(_spread(group.metric(name), digits=2) for name in METRICS)]
        if paper.llava:
            row.insert(place, _of_paper(paper, group, "af"))
        rows.append(row)
    return Table(f"metrics {comparison.label}, {comparison.scorer}", columns, rows)


def _differences(comparison: Comparison) -> Table:
    rows = []
    for label, found in comparison.differences.items():
        cells = [found.tasks.get(task) for task in comparison.tasks]
        rows.append([label, *(DASH if c is None else signed(c.mean) + _star(c) for c in cells)])
    title = (
        f"accuracy {comparison.label} minus {comparison.baseline.label}, percentage points "
        "(*: the 95 % interval of this one difference leaves out 0)"
    )
    return Table(title, ["method", *comparison.tasks], rows)


def _cost(comparison: Comparison) -> list[Table]:
    rows = []
    for group in comparison.groups:
        run = group.first
        extra = DASH if run.extra_bytes is None else f"{run.extra_bytes / 2**20:.2f}"
        count = DASH if run.parameters is None else f"{run.parameters:,}"
        rows.append([group.label, count, extra])
    if all(row[1:] == [DASH, DASH] for row in rows):
        return []
    return [Table("what a method needs", ["method", "trained parameters", "extra MiB"], rows)]


def _unknown_cost(comparison: Comparison) -> list[str]:
    """Why extra memory is a dash, where its table is shown."""
    unknown = [group.label for group in comparison.groups if group.first.extra_bytes is None]
    if not unknown or not _cost(comparison):
        return []
    told = f"extra MiB {DASH}: these trainings were made before it was measured"
    return [told + _whose(unknown, comparison)]


def _whose(labels: Sequence[str], comparison: Comparison) -> str:
    """The groups that a note is about, unless it is about all."""
    everyone = [group.label for group in comparison.groups]
    return "" if labels == everyone else f" ({', '.join(labels)})"


def _settings(comparison: Comparison) -> list[Table]:
    keys = comparison.varying
    rows = [
        [group.label, *(value_text(group.first.settings.get(key)) for key in keys)]
        for group in comparison.groups
    ]
    return [Table("settings that differ", ["method", *keys], rows)] if keys else []


def _block(title: str, rows: Sequence[tuple[str, PaperRow]]) -> Table:
    found = []
    for label, row in rows:
        cells = [percent(row.accuracy.get(task), digits=2) for task in paper_tasks()]
        source = [] if label == row.source else [row.source]
        numbers = [percent(row.ap, digits=2), percent(row.af, digits=2)]
        found.append([label, *cells, *numbers, *(source or ["Table 1"])])
    columns = ["method", *paper_tasks(), "AP", "AF", "where"]
    return Table(f"{title}: accuracy after all 10 tasks, percent", columns, found)


def _reasons(comparison: Comparison) -> list[str]:
    """Why metrics are dashes: one line for each metric and reason, with the groups."""
    found: dict[tuple[str, str], list[str]] = {}
    for group in comparison.groups:
        for name in METRICS:
            reason = group.reason(name)
            if reason is not None:
                found.setdefault((name, reason), []).append(group.label)
    return [
        f"{name} {DASH}: {reason}" + _whose(labels, comparison)
        for (name, reason), labels in found.items()
    ]


def _of_paper(paper: Side, group: Group, name: str) -> str:
    row = paper.llava.get(group.label)
    return percent(None if row is None else getattr(row, name), digits=2)


def _spread(spread: Spread | None, *, digits: int = 1) -> str:
    if spread is None:
        return DASH
    text = f"{spread.mean:.{digits}f}"
    return text if spread.high is None else f"{text}±{spread.high - spread.mean:.{digits}f}"


def _number(spread: Spread | None, name: str) -> str:
    return percent(None if spread is None else getattr(spread, name), digits=2)


def _interval(found: Spread | Difference | None) -> str:
    if found is None or found.low is None or found.high is None:
        return DASH
    return f"{found.low:.2f} to {found.high:.2f}"


def _star(difference: Difference) -> str:
    return "" if difference.low <= 0 <= difference.high else "*"
