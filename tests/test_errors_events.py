"""Errors carry a hint and an exit code; events reach subscribers and nobody else."""

from __future__ import annotations

import pytest

from clmoe.errors import (
    ClmoeError,
    DataError,
    InputStageError,
    MemoryExhaustedError,
    UsageError,
    did_you_mean,
)
from clmoe.events import Event, Note, Progress, emit, subscribe, track


@pytest.mark.parametrize(
    ("kind", "code"),
    [(ClmoeError, 1), (UsageError, 2), (InputStageError, 3), (DataError, 4),
     (MemoryExhaustedError, 5)],
)  # fmt: skip
def test_exit_codes(kind: type[ClmoeError], code: int) -> None:
    error = kind("what", hint="do this")
    assert (str(error), error.message, error.hint, error.exit_code) == (
        "what",
        "what",
        "do this",
        code,
    )
    assert issubclass(kind, ClmoeError)


def test_problems_of_data() -> None:
    assert DataError("bad", problems=["a.json:3: no image"]).problems == ("a.json:3: no image",)
    assert DataError("bad").problems == ()


def test_did_you_mean() -> None:
    assert did_you_mean("locaton", ["location", "color"]) == "; did you mean 'location'?"
    assert did_you_mean("zzz", ["location", "color"]) == ""


def test_events_reach_every_subscriber_while_subscribed() -> None:
    outer: list[Event] = []
    inner: list[Event] = []
    emit(Note("nobody listens"))
    with subscribe(outer.append):
        with subscribe(inner.append):
            emit(Note("one"))
        emit(Note("two"))
    emit(Note("three"))
    assert outer == [Note("one"), Note("two")]
    assert inner == [Note("one")]


def test_a_failure_ends_the_subscription() -> None:
    seen: list[Event] = []
    with pytest.raises(RuntimeError), subscribe(seen.append):
        raise RuntimeError
    emit(Note("after"))
    assert seen == []


def test_track_says_where_it_is() -> None:
    seen: list[Event] = []
    with subscribe(seen.append):
        assert list(track([1, 2, 3], label="count", every=0)) == [1, 2, 3]
        assert list(track(iter("ab"), label="letters", every=100)) == ["a", "b"]
    assert seen == [
        *(Progress("count", done, 3) for done in range(4)),
        Progress("count", 3, 3),
        Progress("letters", 0, None),
        Progress("letters", 2, 2),
    ]
