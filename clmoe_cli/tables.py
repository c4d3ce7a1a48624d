"""Tables as text: readable at 80 columns on a terminal, whole when the output is not one."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Protocol

NUMBER = re.compile(r"[-+\u2212]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?%?\*?|[-\u2013\u2014]?")
SHORTEST_HEADER = 3
FOLDED_TEXT = 24


class TableLike(Protocol):
    """What the stages hand over: a title, the names of the columns and the cells as text."""

    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def columns(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def rows(self) -> Sequence[Sequence[str]]: ...  # noqa: D102


def plain_table(table: TableLike) -> str:
    """The table as aligned columns, two spaces apart, nothing shortened or wrapped."""
    rows = [list(table.columns), *(list(row) for row in table.rows)][not any(table.columns) :]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(table.columns))]
    numeric = numeric_columns(table)
    lines = [table.title] if table.title else []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def fit_headers(table: TableLike, *, width: int) -> tuple[list[str], int]:
    """Headers of numeric columns shortened only as far as the width needs, and the gap between.

    Returns:
        The headers, and the number of spaces between two columns (2, or 1 where it is tight).
    """
    numeric = numeric_columns(table)
    longest = max((len(header) for header in table.columns), default=0)
    for gap in (2, 1):
        for length in range(longest, SHORTEST_HEADER - 1, -1):
            headers = abbreviate(table.columns, length=length, only=numeric)
            if least_width(table, headers, gap=gap) <= width:
                return headers, gap
    return abbreviate(table.columns, length=SHORTEST_HEADER, only=numeric), 1


def least_width(table: TableLike, headers: Sequence[str], *, gap: int) -> int:
    """The width at which every number stands whole; text may wrap from FOLDED_TEXT on."""
    widths = []
    for i, (header, numeric) in enumerate(zip(headers, numeric_columns(table), strict=True)):
        width = max(len(header), *(len(row[i]) for row in table.rows), 0)
        widths.append(width if numeric else min(width, FOLDED_TEXT))
    return sum(widths) + gap * (len(widths) - 1)


def abbreviate(headers: Sequence[str], *, length: int, only: Sequence[bool]) -> list[str]:
    """Cut the chosen headers to a length; those that would then be equal keep a number."""
    short: list[str] = []
    for header, chosen in zip(headers, only, strict=True):
        cut = header[:length] if chosen else header
        number = 2
        while chosen and cut and cut in short:
            cut = header[: length - len(str(number))] + str(number)
            number += 1
        short.append(cut)
    return short


def legend(table: TableLike, headers: Sequence[str], *, width: int) -> str:
    """The line that says what each shortened header stands for; empty if none is shortened."""
    pairs = [f"{s} = {h}" for h, s in zip(table.columns, headers, strict=True) if h != s]
    return textwrap.fill(", ".join(pairs), width, break_long_words=False) if pairs else ""


def numeric_columns(table: TableLike) -> list[bool]:
    """For each column, whether all its cells are numbers or a dash."""
    return [
        bool(table.rows) and all(NUMBER.fullmatch(row[i].strip()) for row in table.rows)
        for i in range(len(table.columns))
    ]
