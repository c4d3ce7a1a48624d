"""How a process that was launched with others says why it failed.

Each process writes one file into a folder that the launcher named. The earliest file is the cause:
what happens in the other processes afterwards (a closed connection, a signal) is its consequence.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "CLMOE_FAILURES"
"""Environment variable with the folder for failures; absent where nobody collects them."""


@dataclass(frozen=True)
class Report:
    """Why one process failed.

    Attributes:
        rank: Its number.
        message: What happened.
        hint: What to do about it, or None.
        problems: Single bad places.
        exit_code: The exit code that the command should have.
        traceback: As Python writes it, for those who ask for it.
    """

    rank: int
    message: str
    hint: str | None
    problems: tuple[str, ...]
    exit_code: int
    traceback: str


def collected() -> bool:
    """Whether a launcher collects the failures of this process."""
    return FOLDER in os.environ


def leave(
    message: str, *, hint: str | None, problems: Sequence[str], exit_code: int, traceback: str
) -> None:
    """Write down why this process fails."""
    report = Report(
        rank=int(os.environ.get("RANK", "0")),
        message=message,
        hint=hint,
        problems=tuple(problems),
        exit_code=exit_code,
        traceback=traceback,
    )
    path = Path(os.environ[FOLDER]) / f"{time.time_ns():020d}-{report.rank}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(report)), encoding="utf-8")
    partial.replace(path)


def first(folder: Path) -> Report | None:
    """The earliest failure that was written down; that of the lowest rank among equal ones."""
    reports = []
    for path in sorted(folder.glob("*.json")):
        fields = json.loads(path.read_text(encoding="utf-8"))
        reports.append(Report(**{**fields, "problems": tuple(fields["problems"])}))
    alike = [report for report in reports if report.message == reports[0].message]
    return min(alike, key=lambda report: report.rank, default=None)
