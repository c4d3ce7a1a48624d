"""Shows the library's events on standard error while a command works.

On a terminal a bar with the time left; elsewhere plain lines, at most one in five seconds a label.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clmoe import events

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BEFORE_BAR = 0.3


@contextmanager
def shown(console: Console) -> Iterator[None]:
    """Shows every event of the block, and every warning of a library, on the console."""
    with warnings.catch_warnings():
        warnings.showwarning = _note_warning
        if console.is_terminal:
            bars = TerminalProgress(console)
            try:
                with events.subscribe(bars):
                    yield
            finally:
                bars.stop()
        else:
            lines = PlainProgress(lambda text: console.print(text, soft_wrap=True))
            with events.subscribe(lines):
                yield


def _note_warning(message: Warning | str, *_: object, **__: object) -> None:
    events.emit(events.Note(str(message), level="warning"))


def describe(event: object) -> str | None:
    """The line that an event is worth, or None for an event that is only progress."""
    if isinstance(event, events.Note):
        return f"warning: {event.text}" if event.level == "warning" else event.text
    if isinstance(event, events.StageStarted):
        return f"{_what(event)} ({event.reason})" if event.reason else _what(event)
    if isinstance(event, events.StageFinished):
        return f"{_what(event)} done in {duration(event.seconds)}"
    if isinstance(event, events.StageSkipped):
        return f"skipped {_what(event)}: {event.reason}"
    return None


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _what(event: events.StageStarted | events.StageFinished | events.StageSkipped) -> str:
    return f"{event.stage} {event.task}" if event.task else str(event.stage)


@dataclass
class _Seen:
    started: float
    first: int
    printed: float


class PlainProgress:
    """Events as lines; a callback for `events.subscribe`."""

    def __init__(
        self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Lines go to `write`; `clock` gives seconds."""
        self._write = write
        self._clock = clock
        self._labels: dict[str, _Seen] = {}

    def __call__(self, event: object) -> None:
        """Write the event's line, if it is due."""
        if isinstance(event, events.Progress):
            self._progress(event)
            return
        line = describe(event)
        if line:
            self._write(line)

    def _progress(self, event: events.Progress) -> None:
        now = self._clock()
        seen = self._labels.get(event.label)
        if seen is None:
            self._labels[event.label] = _Seen(now, event.done, now)
            return
        finished = event.total is not None and event.done >= event.total
        if finished:
            del self._labels[event.label]
        if now - seen.printed < SECONDS_BETWEEN_LINES:
            return
        seen.printed = now
        parts = [f"{event.label}: {event.done:,}"]
        if event.total:
            parts[0] += f" of {event.total:,} ({100 * event.done / event.total:.0f} %)"
            done_here = event.done - seen.first
            if done_here > 0 and not finished:
                left = (now - seen.started) / done_here * (event.total - event.done)
                parts.append(f"{duration(left)} left")
        if event.note:
            parts.append(event.note)
        self._write(", ".join(parts))


class TerminalProgress:
    """Events as bars that go away when done, and lines above them.

    Work that is over in SECONDS_BEFORE_BAR gets no bar, so that nothing flickers.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Draws on `console`; `clock` gives seconds."""
        self._console = console
        self._clock = clock
        self._started: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Bars | None = None

    def __call__(self, event: object) -> None:
        """Move the label's bar, or print the event's line above the bars."""
        if isinstance(event, events.Progress):
            self._progress(event)
            return
        line = describe(event)
        if line:
            self._console.print(line, soft_wrap=True)

    def stop(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._tasks = {}

    def _progress(self, event: events.Progress) -> None:
        if event.total is not None and event.done >= event.total:
            self._started.pop(event.label, None)
            if self._bars is not None and event.label in self._tasks:
                self._bars.remove_task(self._tasks.pop(event.label))
                if not self._tasks:
                    self.stop()
            return
        now = self._clock()
        if now - self._started.setdefault(event.label, now) < SECONDS_BEFORE_BAR:
            return
        if self._bars is None:
            self._bars = _bars(self._console)
            self._bars.start()
        if event.label not in self._tasks:
            self._tasks[event.label] = self._bars.add_task(event.label, total=None, note="")
        self._bars.update(
            self._tasks[event.label], completed=event.done, total=event.total, note=event.note
        )


def _bars(console: Console) -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
        transient=True,
    )
