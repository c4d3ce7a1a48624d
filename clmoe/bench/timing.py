"""Timing several works side by side, and what their times say about each other.

The works take turns (A B C A B C ...), so that whatever else a machine does meanwhile falls on all
of them alike, and each is compared with the reference of its own round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from clmoe.events import Progress, emit

LEAST_ROUNDS = 3
Clock = Callable[[], float]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Work:
    """Something to be timed.

    Attributes:
        run: What is timed.
        reset: Called before each `run`, outside of the time.
    """

    run: Callable[[], object]
    reset: Callable[[], object] = _nothing


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and their quartiles."""

    median: float
    lower: float
    upper: float

    def scaled(self, factor: float) -> dict[str, float]:
        """The three numbers times `factor`, by name."""
        return {
            "median": self.median * factor,
            "lower": self.lower * factor,
            "upper": self.upper * factor,
        }


def spread(values: Sequence[float]) -> Spread:
    """The median and quartiles of at least one number."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def ratios(values: Sequence[float], *, reference: Sequence[float]) -> Spread:
    """How many times the reference's time a work takes: the spread over the rounds."""
    return spread([value / other for value, other in zip(values, reference, strict=True)])


def clock_of(device: torch.device) -> Clock:
    """Seconds that pass; on a GPU counted when everything that was queued is done."""
    if device.type != "cuda":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def interleave(
    works: Mapping[str, Work],
    *,
    repeats: int,
    seconds: float,
    clock: Clock,
    label: str,
    warmups: int = 1,
) -> dict[str, list[float]]:
    """Time every work once a round, for `repeats` rounds.

    Args:
        works: What to time, in the order of a round.
        repeats: At most so many rounds.
        seconds: No further round is begun that would probably end after so many seconds; but
            three rounds are done in any case (fewer where `repeats` is less).
        clock: Tells the time, in seconds.
        label: What progress calls it.
        warmups: Rounds before, which are not counted.

    Returns:
        For each work its seconds, one a round.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(warmups):
        for work in works.values():
            work.reset()
            work.run()
    collecting = gc.isenabled()
    gc.disable()
    began = clock()
    try:
        for done in range(repeats):
            spent = clock() - began
            if done >= LEAST_ROUNDS and spent + spent / done > seconds:
                break
            for name, work in works.items():
                work.reset()
                start = clock()
                work.run()
                times[name].append(clock() - start)
            emit(Progress(label, done + 1, repeats))
    finally:
        if collecting:
            gc.enable()
    return times
