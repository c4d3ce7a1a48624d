"""Timers interleave, stop in time, and their ratios are what one computes by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from clmoe.bench.measure import compare
from clmoe.bench.timing import Spread, Work, interleave, ratios, spread
from clmoe.events import Event, Progress, subscribe


class Ticking:
    """A clock that only works move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, *seconds: float) -> Callable[[], None]:
        left = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def run() -> None:
            self.now += next(left)

        return run


def test_works_take_turns() -> None:
    calls: list[str] = []
    works = {
        name: Work(lambda n=name: calls.append(n), lambda n=name: calls.append(f"reset {n}"))
        for name in "ABC"
    }
    clock = itertools.count()
    interleave(works, repeats=3, seconds=1e9, clock=lambda: float(next(clock)), label="x")
    one_round = ["reset A", "A", "reset B", "B", "reset C", "C"]
    assert calls == one_round * 4  # a warm-up and three rounds


def test_every_run_is_timed_without_its_reset_and_its_warm_up() -> None:
    clock = Ticking()
    works = {
        "a": Work(clock.work(100.0, 1.0, 2.0, 3.0), clock.work(7.0)),
        "b": Work(clock.work(50.0, 4.0, 5.0, 6.0)),
    }
    times = interleave(works, repeats=3, seconds=1e9, clock=clock, label="x")
    assert times == {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}


@pytest.mark.parametrize(
    ("seconds", "repeats", "rounds"),
    [(1e9, 5, 5), (10.0, 20, 10), (10.5, 20, 10), (0.0, 20, 3), (0.0, 2, 2)],
)
def test_rounds_stop_within_the_budget_but_not_before_three(
    seconds: float, repeats: int, rounds: int
) -> None:
    clock = Ticking()
    seen: list[Event] = []
    with subscribe(seen.append):
        times = interleave(
            {"a": Work(clock.work(1.0))}, repeats=repeats, seconds=seconds, clock=clock, label="x"
        )
    assert len(times["a"]) == rounds
    assert seen == [Progress("x", n + 1, repeats) for n in range(rounds)]


def test_quartiles_by_hand() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
    assert spread([2.0, 4.0]).scaled(1e3) == {"median": 3000.0, "lower": 2500.0, "upper": 3500.0}


def test_a_ratio_compares_within_a_round() -> None:
    """A machine that is twice as slow in one round changes no ratio."""
    assert ratios([2.0, 4.0, 2.0], reference=[1.0, 2.0, 1.0]) == Spread(2.0, 2.0, 2.0)
    assert ratios([3.0, 2.0, 1.0], reference=[1.0, 1.0, 2.0]) == Spread(2.0, 1.25, 2.5)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratios([1.0, 2.0], reference=[1.0])


def test_figures_by_hand() -> None:
    found = compare(
        [0.2, 0.4, 0.3], reference=[0.1, 0.1, 0.3], samples=6, flops=90, matmul_rate=600.0, peak=8
    )
    assert found.ratio == Spread(2.0, 1.5, 3.0)
    data = found.data()
    assert data["ms"]["median"] == pytest.approx(300.0)
    assert data["per_second"] == pytest.approx(20.0)  # 6 in 0.3 s
    assert data["matmul_share"] == pytest.approx(0.5)  # 90 / 0.3 = 300 of 600
    assert (data["flops"], data["peak_bytes"]) == (90, 8)
