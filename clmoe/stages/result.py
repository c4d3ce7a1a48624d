"""What a command hands back: facts for people, and the same facts as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clmoe.reporting.tables import Table

__all__ = ["Outcome", "Result", "Table"]


@dataclass(frozen=True)
class Outcome:
    """What became of one stage.

    Attributes:
        node_label: Such as ``train/01-recognition``.
        status: ``done``, or ``skipped`` where it was up to date or already in the store.
        reason: Why it ran, or why not.
        seconds: Time it took in this process.
        fingerprint: Of the version that is now current.
        path: Where that version lies.
        summary: The manifest's summary.
        lines: Facts to print.
    """

    node_label: str
    status: str
    reason: str
    seconds: float
    fingerprint: str
    path: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What one command did.

    Attributes:
        command: The command's name.
        run: The run it acted on, or an empty string.
        outcomes: One for each stage looked at.
        tables: Tables to print, in order.
        data: For ``--json``: metrics, states, whatever the command is about.
        next_command: What to type next.
        notes: Sentences to print.
    """

    command: str
    run: str = ""
    outcomes: tuple[Outcome, ...] = ()
    tables: tuple[Table, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    next_command: str | None = None
    notes: tuple[str, ...] = ()
