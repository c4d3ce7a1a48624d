"""A table as LaTeX (booktabs)."""

from __future__ import annotations

import re

from clmoe.reporting.tables import DASH, Table

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
}  # fmt: skip
_MINUS = re.compile(r"(?<![\w.)])-(?=\d)")
NEEDS = r"% \usepackage{booktabs}"


def latex(table: Table) -> str:
    """The table in a float with its title as the caption; text left, everything else right."""
    columns = "l" + "r" * (len(table.columns) - 1)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row(table.columns),
        r"\midrule",
        *(_row(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """The text with LaTeX's own characters escaped and a true minus before a number."""
    if text == DASH:
        return "--"
    signed = _MINUS.sub("\x00", text)
    return "".join(_ESCAPED.get(c, c) for c in signed).replace("\x00", "$-$")


def _row(cells: list[str]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"
