"""Events become lines, at most one in five seconds a label, with the time left."""

from __future__ import annotations

import io
import warnings

import pytest
from rich.console import Console

from clmoe import events
from clmoe_cli import progress


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(steps: list[tuple[float, object]]) -> list[str]:
    written: list[str] = []
    clock = Clock()
    show = progress.PlainProgress(written.append, clock=clock)
    for now, event in steps:
        clock.now = now
        show(event)
    return written


def test_a_line_every_five_seconds_with_the_time_left() -> None:
    steps = [(i / 10, events.Progress("train color", i, 200)) for i in range(201)]
    assert lines_of(steps) == [
        "train color: 50 of 200 (25 %), 15 s left",
        "train color: 100 of 200 (50 %), 10 s left",
        "train color: 150 of 200 (75 %), 5.0 s left",
        "train color: 200 of 200 (100 %)",
    ]


def test_work_that_resumes_counts_only_what_it_did_itself() -> None:
    steps = [(0.0, events.Progress("x", 100, 200)), (10.0, events.Progress("x", 150, 200))]
    assert lines_of(steps) == ["x: 150 of 200 (75 %), 10 s left"]


def test_short_work_writes_nothing() -> None:
    steps = [(i / 100, events.Progress("hash", i, 100)) for i in range(101)]
    assert lines_of(steps) == []


def test_labels_do_not_hide_each_other_and_may_come_again() -> None:
    steps = []
    for start in (0.0, 100.0):
        steps += [(start, events.Progress(label, 0, 10)) for label in "ab"]
        steps += [(start + 6, events.Progress(label, 10, 10, "fine")) for label in "ab"]
    assert lines_of(steps) == ["a: 10 of 10 (100 %), fine", "b: 10 of 10 (100 %), fine"] * 2


def test_an_unknown_total() -> None:
    steps = [(0.0, events.Progress("read", 0, None)), (6.0, events.Progress("read", 1234, None))]
    assert lines_of(steps) == ["read: 1,234"]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (events.Note("reading"), "reading"),
        (events.Note("no space [here]", level="warning"), "warning: no space [here]"),
        (
            events.StageStarted("merge", "color", "stale: merge.gamma 0.7 -> 0.8"),
            "merge color (stale: merge.gamma 0.7 -> 0.8)",
        ),
        (events.StageFinished("train", "color", 61.0, ""), "train color done in 1 min 01 s"),
        (
            events.StageFinished("report", None, 0.25, "4 files"),
            "report done in 0.2 s",
        ),
        (
            events.StageSkipped("prepare", None, "nothing changed"),
            "skipped prepare: nothing changed",
        ),
    ],
)
def test_other_events_are_a_line_each(event: object, line: str) -> None:
    assert lines_of([(0.0, event)]) == [line]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.7, "1 min 00 s"), (3599, "59 min 59 s"),
     (3900, "1 h 05 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


class TestBars:
    """On a terminal."""

    def screen(self, monkeypatch: pytest.MonkeyPatch, *, before_bar: float) -> str:
        monkeypatch.setattr(progress, "SECONDS_BEFORE_BAR", before_bar)
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=80, markup=False, highlight=False)
        with progress.shown(console):
            events.emit(events.StageStarted("train", "color", "missing: never run"))
            for _ in events.track(range(5), label="train color [1]", every=0.0):
                pass
            events.emit(events.Progress("unfinished", 0, 3))
            events.emit(events.Progress("unfinished", 1, 3, "loss 0.5"))
        return shown.getvalue()

    def test_a_bar_has_label_count_and_note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = self.screen(monkeypatch, before_bar=0.0)
        assert "train color (missing: never run)" in text
        assert "unfinished" in text
        assert "1/3" in text
        assert "loss 0.5" in text

    def test_short_work_gets_no_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = self.screen(monkeypatch, before_bar=60.0)
        assert "train color (missing: never run)" in text
        assert "train color [1]" not in text
        assert "unfinished" not in text


def test_warnings_of_libraries_become_lines() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, markup=False)
    with progress.shown(console):
        warnings.simplefilter("always")
        warnings.warn("a layer is old", UserWarning, stacklevel=1)
    assert screen.getvalue() == "warning: a layer is old\n"
