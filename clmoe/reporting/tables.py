"""Tables of text: for a terminal, and as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

DASH = "-"


@dataclass(frozen=True)
class Table:
    """A titled table of text cells."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def csv(self) -> str:
        """The table as CSV, without its title."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """The table as a Markdown table under its title."""
        lines = [[c.replace("|", "\\|") for c in row] for row in (self.columns, *self.rows)]
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        body = ["| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:])]
        return "\n".join([f"### {self.title}", "", *body, ""])


def percent(value: float | None, *, digits: int = 1) -> str:
    """A number rounded for display, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def signed(value: float, *, digits: int = 1) -> str:
    """A number with its sign."""
    return f"{value:+.{digits}f}"
