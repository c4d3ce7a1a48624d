"""Intervals: numbers known from elsewhere, a slow bootstrap, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmoe.errors import ClmoeError
from clmoe.metrics.intervals import over_seeds, paired_difference, wilson


@pytest.mark.parametrize(
    ("correct", "asked", "low", "high"),
    [
        # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.959964
        (5, 10, 23.659, 76.341),
        (0, 10, 0.0, 27.753),
        (10, 10, 72.247, 100.0),
        (81, 263, 25.529, 36.621),  # Newcombe 1998 prints 0.2553 and 0.3662
    ],
)
def test_wilson_by_hand(correct: float, asked: int, low: float, high: float) -> None:
    interval = wilson(correct, asked=asked)
    assert interval.low == pytest.approx(low, abs=0.001)
    assert interval.high == pytest.approx(high, abs=0.001)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.floats(0, n), st.just(n))))
def test_wilson_contains_the_share_and_stays_in_range(case: tuple[float, int]) -> None:
    correct, asked = case
    interval = wilson(correct, asked=asked)
    assert 0 <= interval.low <= 100 * correct / asked + 1e-9
    assert 100 * correct / asked - 1e-9 <= interval.high <= 100


def test_wilson_ends_solve_the_score_equation() -> None:
    interval = wilson(30, asked=100)
    for end in (interval.low / 100, interval.high / 100):
        z = abs(0.3 - end) / (end * (1 - end) / 100) ** 0.5
        assert z == pytest.approx(1.959964, abs=1e-5)


def test_wilson_needs_questions() -> None:
    with pytest.raises(ClmoeError, match="0 right of 0 asked"):
        wilson(0, asked=0)


def scores(values: list[float], task: str = "t") -> dict[str, dict[str, float]]:
    return {task: {f"q{i}": value for i, value in enumerate(values)}}


def test_bootstrap_agrees_with_drawing_question_by_question() -> None:
    generator = np.random.default_rng(1)
    first = generator.choice([0.0, 0.3, 0.6, 0.9, 1.0], 300)
    second = np.where(generator.random(300) < 0.7, first, generator.choice([0.0, 1.0], 300))
    fast = paired_difference(
        scores(list(first)), second=scores(list(second)), seed=3, resamples=20_000
    )
    change = first - second
    drawn = generator.integers(0, 300, (20_000, 300))
    low, high = 100 * np.quantile(change[drawn].mean(axis=1), [0.025, 0.975])
    assert fast.mean == pytest.approx(100 * change.mean())
    assert fast.low == pytest.approx(low, abs=0.15)
    assert fast.high == pytest.approx(high, abs=0.15)
    assert (fast.questions, fast.resamples) == (300, 20_000)


def test_tasks_count_the_same_however_many_questions_they_have() -> None:
    first = scores([1.0] * 10, "small") | scores([0.0] * 1000, "large")
    second = scores([0.0] * 10, "small") | scores([0.0] * 1000, "large")
    found = paired_difference(first, second=second)
    assert (found.mean, found.low, found.high) == (50, 50, 50)


def test_equal_runs_differ_by_nothing_and_pairing_narrows() -> None:
    generator = np.random.default_rng(0)
    values = [float(v) for v in generator.integers(0, 2, 400)]
    same = paired_difference(scores(values), second=scores(values))
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    shuffled = list(generator.permutation(values))
    unpaired = paired_difference(scores(values), second=scores(shuffled))
    assert unpaired.high - unpaired.low > 5


def test_the_seed_decides_the_draws() -> None:
    first = scores([(i % 7) / 7 for i in range(200)])
    second = scores([(i % 11) / 11 for i in range(200)])
    one, again, other = (paired_difference(first, second=second, seed=s) for s in (1, 1, 2))
    assert one == again
    assert one != other
    swapped = paired_difference(second, second=first, seed=1)
    assert swapped.mean == pytest.approx(-one.mean)


def test_the_order_of_questions_does_not_matter() -> None:
    first = scores([float(i % 3 == 0) for i in range(50)])
    second = scores([float(i % 5 == 0) for i in range(50)])
    backwards = {"t": dict(reversed(list(second["t"].items())))}
    assert paired_difference(first, second=second) == paired_difference(first, second=backwards)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        first = generator.random(150) < 0.6
        second = generator.random(150) < 0.5
        found = paired_difference(
            scores(list(first.astype(float))),
            second=scores(list(second.astype(float))),
            seed=trial,
            resamples=400,
        )
        hits += found.low <= 10 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_different_questions_are_refused() -> None:
    with pytest.raises(ClmoeError, match="same questions of t: 1 differ, the first is q2"):
        paired_difference(scores([1, 1, 1]), second=scores([1, 1]))
    with pytest.raises(ClmoeError, match="different tasks"):
        paired_difference(scores([1]), second=scores([1], "other"))
    with pytest.raises(ClmoeError, match="different tasks"):
        paired_difference({}, second={})
    with pytest.raises(ClmoeError, match="same questions of t: 0 differ"):
        paired_difference({"t": {}}, second={"t": {}})


def test_over_seeds_by_hand() -> None:
    spread = over_seeds([1.0, 2.0, 3.0])
    # sd 1, t with 2 degrees of freedom at 97.5 %: 4.302653
    assert (spread.mean, spread.sd, spread.count) == (2.0, 1.0, 3)
    assert spread.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert spread.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    one = over_seeds([5.0])
    assert (one.mean, one.sd, one.low, one.high, one.count) == (5.0, None, None, None, 1)
    with pytest.raises(ClmoeError, match="no value"):
        over_seeds([])
