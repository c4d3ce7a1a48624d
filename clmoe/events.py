"""What the library has to say while it works: events, emitted to whoever subscribed.

The library never prints. A command line program subscribes and draws progress bars; a run
subscribes and writes `log.jsonl`; with no subscriber events vanish.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Note:
    """One line of text for people."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long piece of work is: `done` of `total` items (`total` None when unknown)."""

    label: str
    done: int
    total: int | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins; `task` is its task or None, `reason` why it runs."""

    stage: str
    task: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage committed its outputs after `seconds`."""

    stage: str
    task: str | None
    seconds: float
    summary: str


@dataclass(frozen=True, slots=True)
class StageSkipped:
    """A stage had nothing to do."""

    stage: str
    task: str | None
    reason: str


Event: TypeAlias = Note | Progress | StageStarted | StageFinished | StageSkipped
Callback: TypeAlias = Callable[[Event], None]

_subscribers: list[Callback] = []


def emit(event: Event) -> None:
    """Hands the event to every subscriber, oldest first."""
    for callback in tuple(_subscribers):
        callback(event)


@contextmanager
def subscribe(callback: Callback) -> Iterator[None]:
    """Calls `callback` with every event emitted inside the `with` block."""
    _subscribers.append(callback)
    try:
        yield
    finally:
        _remove_last(callback)


def _remove_last(callback: Callback) -> None:
    for position in range(len(_subscribers) - 1, -1, -1):
        if _subscribers[position] is callback:
            del _subscribers[position]
            return


def track(
    iterable: Iterable[Item], *, label: str, total: int | None = None, every: float = 0.2
) -> Iterator[Item]:
    """Yields the items and emits `Progress` at most every `every` seconds, and once at the end.

    Args:
        iterable: What to go through.
        label: What is being done, for people.
        total: How many items there are; taken from `len` where the iterable has one.
        every: Seconds between two events; the first comes at once, the last at the end.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    emit(Progress(label, 0, total))
    last = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= every:
            emit(Progress(label, done, total))
            last = now
    emit(Progress(label, done, total if total is not None else done))
