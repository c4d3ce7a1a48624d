"""What is compared of one run, and whether two runs may stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clmoe.errors import UsageError
from clmoe.metrics.accuracy_matrix import AccuracyMatrix
from clmoe.recipe.keys import keys
from clmoe.recipe.presets import PRESETS

SEED = "train.seed"
METHOD = "method.name"
_SIZES = ("route.top_k",)
"""Keys of presets that tell no method from another: with one expert K is nothing but 1."""
_TELLING = tuple(
    dict.fromkeys(key for p in PRESETS.values() for key in p.values if key not in _SIZES)
)


@dataclass(frozen=True)
class ComparedRun:
    """What is compared of one run.

    Attributes:
        name: The run's name.
        settings: The recipe's keys that change a result, ``method.name`` and the seed among them.
        matrix: Its accuracy matrix.
        after: The newest row of the matrix.
        scorer: The scorer of cells and scores.
        scores: Task -> question id -> score in [0, 1], after the newest row.
        data: Task -> digest of its prepared questions.
        identified: Percent of questions whose task was identified; None where no index was used.
        parameters: Trainable parameters; None where nothing says so.
        extra_bytes: The method's extra memory beside adapter and optimizer; None: not reported.
        extra: What it is made of, e.g. the replay memory; None: not reported.
    """

    name: str
    settings: Mapping[str, Any]
    matrix: AccuracyMatrix
    after: int
    scorer: str
    scores: Mapping[str, Mapping[str, float]]
    data: Mapping[str, str]
    identified: float | None = None
    parameters: int | None = None
    extra_bytes: int | None = None
    extra: Mapping[str, int] | None = None

    @property
    def seed(self) -> int:
        """``train.seed``."""
        return int(self.settings[SEED])

    @property
    def method(self) -> str:
        """``method.name``."""
        return str(self.settings[METHOD])

    @property
    def departures(self) -> dict[str, Any]:
        """Where its settings are not what its method's name stands for; see `departures`."""
        return departures(self.method, settings=self.settings)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order of training."""
        return self.matrix.tasks


def departures(method: str, *, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of the settings that the method's name does not stand for.

    Compared are the keys that its preset sets, and those that tell other methods from it, which
    then have their default. A key that is not among the settings departs from nothing.
    """
    preset, about = PRESETS[method].values, keys()
    return {
        key: settings[key]
        for key in dict.fromkeys((*preset, *_TELLING))
        if key in settings and settings[key] != preset.get(key, about[key].default)
    }


def check_comparable(runs: Sequence[ComparedRun]) -> None:
    """Refuse runs whose numbers do not belong beside each other.

    Raises:
        UsageError: There is none, one is named twice, or two have other tasks, rows, scorers or
            questions.
    """
    if not runs:
        raise UsageError("there is no run to compare", hint="clmoe compare RUN RUN")
    first, again = runs[0], [run.name for run in runs]
    twice = sorted({name for name in again if again.count(name) > 1})
    if twice:
        raise UsageError(f"named twice: {', '.join(twice)}", hint="name each run once")
    for run in runs[1:]:
        if set(run.tasks) != set(first.tasks):
            raise UsageError(
                f"{run.name} and {first.name} have other tasks: only one of them has "
                f"{', '.join(sorted(set(run.tasks) ^ set(first.tasks)))}",
                hint="compare runs over the same tasks",
            )
        if (run.after, run.scorer) != (first.after, first.scorer):
            raise UsageError(
                f"{first.name} stands after {first.after} of {len(first.tasks)} tasks "
                f"({first.scorer}), {run.name} after {run.after} ({run.scorer})",
                hint=f"finish the one that is behind, e.g. clmoe eval --run {run.name}",
            )
        _check_questions(first, run)


def _check_questions(first: ComparedRun, run: ComparedRun) -> None:
    if first.scores.keys() != run.scores.keys():
        raise UsageError(
            f"{run.name} and {first.name} answered other tasks in their newest row: "
            f"{', '.join(sorted(first.scores.keys() ^ run.scores.keys()))}",
            hint="both must have learned the same tasks by then",
        )
    for task, scores in first.scores.items():
        odd = sorted(scores.keys() ^ run.scores[task].keys())
        if odd:
            raise UsageError(
                f"{run.name} and {first.name} were not asked the same questions of {task}: "
                f"{len(odd)} differ, the first is {odd[0]}",
                hint="compare runs of the same prepared data and split",
            )
        if first.data[task] != run.data[task]:
            raise UsageError(
                f"{run.name} and {first.name} have other data: their questions of {task} have the "
                "same ids, but not the same content",
                hint="compare runs of the same prepared data and split",
            )
