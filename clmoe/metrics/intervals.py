"""How sure a number is: Wilson for a cell, paired bootstrap for a difference, t over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from clmoe.errors import ClmoeError

_MOST_DRAWS = 4_000_000  # counts held in memory at once


@dataclass(frozen=True)
class Interval:
    """Two ends, in percent or percentage points."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference of two runs, first minus second, in percentage points.

    Attributes:
        mean: The mean over tasks of the difference of accuracies.
        low: Lower end of the bootstrap interval.
        high: Upper end.
        questions: How many questions were compared.
        resamples: How many bootstrap samples were drawn.
    """

    mean: float
    low: float
    high: float
    questions: int
    resamples: int


@dataclass(frozen=True)
class Spread:
    """A number over seeds.

    Attributes:
        mean: Over the seeds.
        sd: Sample standard deviation (n - 1); None with one seed.
        low: Lower end of the t-interval of the mean; None with one seed.
        high: Upper end.
        count: How many seeds.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    count: int


def wilson(correct: float, *, asked: int, level: float = 0.95) -> Interval:
    """The score interval of a proportion (Wilson 1927), in percent.

    Args:
        correct: k, in [0, N]. With fractional scores the interval is an approximation.
        asked: N, above 0.
        level: Confidence.
    """
    if asked < 1 or not 0 <= correct <= asked + 1e-9:
        raise ClmoeError(f"{correct} right of {asked} asked is no accuracy")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = min(correct / asked, 1.0)
    spread = z * sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    centre, scale = share + z * z / (2 * asked), 1 + z * z / asked
    return Interval(
        100 * max(0.0, (centre - spread) / scale), 100 * min(1.0, (centre + spread) / scale)
    )


def paired_difference(
    first: Mapping[str, Mapping[str, float]],
    *,
    second: Mapping[str, Mapping[str, float]],
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Difference:
    """A bootstrap interval over questions for the mean over tasks of accuracy, first - second.

    Questions are drawn with replacement inside each task, the same ones for both runs. With all
    tasks this is the difference of AP; with one task, of a cell.

    Args:
        first: Task -> question id -> score in [0, 1].
        second: The same questions, answered by the other run.
        seed: Of the draws.
        resamples: How many.
        level: Confidence.

    Raises:
        ClmoeError: The two runs were not asked the same questions.
    """
    _check_same_questions(first, second=second)
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    means: list[float] = []
    for task in first:
        change = np.array([first[task][key] - second[task][key] for key in sorted(first[task])])
        means.append(float(change.mean()))
        total += _resampled_means(change, resamples=resamples, generator=generator)
    draws = 100 * total / len(means)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    questions = sum(len(scores) for scores in first.values())
    return Difference(100 * fmean(means), float(low), float(high), questions, resamples)


def over_seeds(values: Sequence[float], *, level: float = 0.95) -> Spread:
    """Mean, standard deviation and t-interval of one number over seeds.

    Raises:
        ClmoeError: There is no value.
    """
    if not values:
        raise ClmoeError("there is no value to average over seeds")
    mean, count = fmean(values), len(values)
    if count == 1:
        return Spread(mean, None, None, None, 1)
    sd = stdev(values)
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * sd / sqrt(count)
    return Spread(mean, sd, mean - half, mean + half, count)


def _resampled_means(
    values: NDArray[np.float64], *, resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means of `resamples` samples of the size of `values`, drawn with replacement.

    Scores take few different values, so how often each is drawn is one multinomial, which is the
    same distribution as drawing question by question.
    """
    different, counts = np.unique(values, return_counts=True)
    shares = counts / counts.sum()
    step = max(1, _MOST_DRAWS // len(different))
    means = [
        generator.multinomial(len(values), shares, size=min(step, resamples - start)) @ different
        for start in range(0, resamples, step)
    ]
    result: NDArray[np.float64] = np.concatenate(means) / len(values)
    return result


def _check_same_questions(
    first: Mapping[str, Mapping[str, float]], *, second: Mapping[str, Mapping[str, float]]
) -> None:
    if not first or first.keys() != second.keys():
        raise ClmoeError(f"the runs have different tasks: {sorted(first)} and {sorted(second)}")
    for task, scores in first.items():
        odd = sorted(scores.keys() ^ second[task].keys())
        if odd or not scores:
            raise ClmoeError(
                f"the runs were not asked the same questions of {task}: {len(odd)} differ"
                + (f", the first is {odd[0]}" if odd else ""),
                hint="compare runs of the same prepared data and split",
            )
