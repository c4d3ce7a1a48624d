"""Two runs that want the same version: the second waits and takes it."""

from __future__ import annotations

from typing import Any

import pytest

from clmoe.errors import BusyError
from clmoe.events import Event, Note, subscribe
from clmoe.runs.plan import Node
from clmoe.stages import engine


class Contested:
    """A run whose version another process is making; it is there after a number of looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def begin(self, node: Node, *, external: Any) -> None:
        raise BusyError(f"this version of {node.stage} is being written by process 7")

    def adopt(self, node: Node, *, external: Any) -> bool:
        self.looks -= 1
        return self.looks == 0


def test_waits_once_told_and_adopts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WAIT_SECONDS", 0.0)
    told: list[Event] = []
    run: Any = Contested(looks=3)
    with subscribe(told.append):
        assert engine._begin(run, Node("index", "color"), external=None) is None
    assert run.looks == 0
    notes = [event.text for event in told if isinstance(event, Note)]
    assert notes == ["waiting: this version of index is being written by process 7"]
