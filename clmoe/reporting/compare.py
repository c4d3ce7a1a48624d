"""Runs side by side: grouped over seeds, with paired differences over the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from clmoe.errors import UsageError, did_you_mean
from clmoe.metrics.continual import FORMULAS, Metric, diagonal, summary
from clmoe.metrics.intervals import Difference, Spread, over_seeds, paired_difference
from clmoe.reporting.compared_run import METHOD, SEED, ComparedRun, check_comparable

ORACLE = "eval.oracle_task"
MARKED = {ORACLE: "true task ids", "protocol.task_known": "task given"}
"""Keys that every label tells where they are on, whatever the other runs say."""
ZERO_SHOT = "zero-shot"
IDENTIFIED = "identified"
METRICS = (*FORMULAS, ZERO_SHOT, IDENTIFIED)
_NO_REFERENCE = "no vanilla run of the same data, order and seed is among these runs"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: What to call them: the method, and the keys that tell it from the method's preset
            and from others of its method.
        runs: In the order of their seeds.
        metrics: For each run in that order, its metrics with AF-ref and zero-shot.
    """

    label: str
    runs: tuple[ComparedRun, ...]
    metrics: tuple[Mapping[str, Metric], ...]

    @property
    def first(self) -> ComparedRun:
        """The run with the lowest seed."""
        return self.runs[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(run.seed for run in self.runs)

    def accuracy(self, task: str) -> Spread | None:
        """Accuracy on a task after the newest row; None where a run has no such cell."""
        return _spread([run.matrix.percent(run.after, task) for run in self.runs])

    def metric(self, name: str) -> Spread | None:
        """A metric of `METRICS`; None where it is undefined for one of the runs."""
        return _spread([metrics[name].value for metrics in self.metrics])

    def reason(self, name: str) -> str | None:
        """Why a metric is undefined; None where it is not."""
        return next((m[name].reason for m in self.metrics if m[name].value is None), None)


@dataclass(frozen=True)
class GroupDifference:
    """One group minus the baseline, in percentage points.

    Attributes:
        overall: Of AP: the mean over tasks, with the paired bootstrap interval over questions.
        tasks: The same for each task.
        seeds: Seeds that both have, over which scores were averaged before pairing; where they
            share none, each side was averaged over its own.
        over_seeds: The difference of AP over those seeds; None with fewer than two.
    """

    overall: Difference
    tasks: Mapping[str, Difference]
    seeds: tuple[int, ...]
    over_seeds: Spread | None


@dataclass(frozen=True)
class Comparison:
    """Groups over the same tasks and questions.

    Attributes:
        groups: In the order in which their first runs were given.
        baseline: The group that differences are taken to.
        differences: Label -> difference; the baseline has none.
    """

    groups: tuple[Group, ...]
    baseline: Group
    differences: Mapping[str, GroupDifference]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order of the first run."""
        return self.groups[0].first.tasks

    @property
    def scorer(self) -> str:
        """The scorer of every number."""
        return self.groups[0].first.scorer

    @property
    def label(self) -> str:
        """``after t of M tasks``, or ``after all M tasks``."""
        after, size = self.groups[0].first.after, len(self.tasks)
        return f"after all {size} tasks" if after == size else f"after {after} of {size} tasks"

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Keys, the method's name and the seed apart, that the groups do not agree on."""
        return _varying([group.first for group in self.groups])


def compare(
    runs: Sequence[ComparedRun],
    *,
    baseline: str | None = None,
    references: Sequence[ComparedRun] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Group runs over seeds, and take every difference to a baseline.

    Args:
        runs: At least one.
        baseline: A run's name, a group's label or a method; None: the group of the first run.
        references: More runs whose vanilla ones may serve AF-ref.
        resamples: Of the bootstrap.
        seed: Of its draws.

    Raises:
        UsageError: The runs have other tasks, other questions or another scorer, stand at another
            row, are the same recipe and seed twice, or none is called like the baseline.
    """
    check_comparable(runs)
    vanilla = [run for run in _once([*runs, *references]) if run.method == "vanilla"]
    groups = tuple(
        Group(label, members, tuple(_metrics(run, vanilla=vanilla) for run in members))
        for label, members in _grouped(runs).items()
    )
    chosen = groups[0] if baseline is None else _find(groups, baseline)
    differences = {
        group.label: _difference(group, chosen, resamples=resamples, seed=seed)
        for group in groups
        if group is not chosen
    }
    return Comparison(groups, chosen, differences)


def mean_scores(group: Group, *, seeds: Sequence[int] = ()) -> dict[str, dict[str, float]]:
    """The score of each question, averaged over a group's runs (of these seeds, if any)."""
    runs = [run for run in group.runs if not seeds or run.seed in seeds]
    return {
        task: {key: fmean(run.scores[task][key] for run in runs) for key in scores}
        for task, scores in group.first.scores.items()
    }


def _metrics(run: ComparedRun, *, vanilla: Sequence[ComparedRun]) -> dict[str, Metric]:
    found = {v.name: diagonal(v.matrix) for v in vanilla if _refers(v, run)}
    same = [reference for i, reference in enumerate(found.values()) if i == 0]
    clear = all(reference == same[0] for reference in found.values())
    metrics = summary(run.matrix, after=run.after, reference=same[0] if same and clear else None)
    if not clear:
        reason = f"{', '.join(found)} differ: which is the reference is not clear"
        metrics["AF-ref"] = replace(metrics["AF-ref"], reason=reason)
    elif not found and run.after > 1:
        metrics["AF-ref"] = replace(metrics["AF-ref"], reason=_NO_REFERENCE)
    told = "true task ids were used" if run.settings.get(ORACLE) else "no task index was used"
    formula = "percent of questions of learned tasks whose task was identified"
    share = Metric(run.identified, formula, told if run.identified is None else None, "")
    return {**metrics, ZERO_SHOT: summary(run.matrix, after=0)["AP"], IDENTIFIED: share}


def _refers(vanilla: ComparedRun, run: ComparedRun) -> bool:
    """Whether a run that is vanilla in every key has the same seed, order, data and base."""
    if vanilla.departures:
        return False
    if (vanilla.seed, vanilla.tasks, vanilla.scorer) != (run.seed, run.tasks, run.scorer):
        return False
    keys = {key for key in (*vanilla.settings, *run.settings) if key.startswith(("data.", "base."))}
    return all(vanilla.settings.get(key) == run.settings.get(key) for key in keys)


def _difference(group: Group, baseline: Group, *, resamples: int, seed: int) -> GroupDifference:
    common = tuple(s for s in group.seeds if s in baseline.seeds)
    first, second = mean_scores(group, seeds=common), mean_scores(baseline, seeds=common)
    tasks = [task for task in baseline.first.tasks if task in second]
    options: dict[str, int] = {"seed": seed, "resamples": resamples}
    apart = {
        task: paired_difference({task: first[task]}, second={task: second[task]}, **options)
        for task in tasks
    }
    paired = None
    if len(common) > 1:
        aps = [
            {run.seed: _ap(run) for run in side.runs if run.seed in common}
            for side in (group, baseline)
        ]
        paired = over_seeds([aps[0][s] - aps[1][s] for s in common])
    return GroupDifference(
        overall=paired_difference(
            {task: first[task] for task in tasks},
            second={task: second[task] for task in tasks},
            **options,
        ),
        tasks=apart,
        seeds=common,
        over_seeds=paired,
    )


def _ap(run: ComparedRun) -> float:
    return 100 * fmean(fmean(scores.values()) for scores in run.scores.values())


def _grouped(runs: Sequence[ComparedRun]) -> dict[str, tuple[ComparedRun, ...]]:
    groups: list[list[ComparedRun]] = []
    for run in runs:
        same = next((g for g in groups if _without_seed(g[0]) == _without_seed(run)), None)
        if same is None:
            groups.append([run])
            continue
        twin = next((other for other in same if other.seed == run.seed), None)
        if twin is not None:
            raise UsageError(
                f"{twin.name} and {run.name} are the same recipe with the same seed: one of them "
                "would be counted twice",
                hint=f"leave out {run.name}",
            )
        same.append(run)
    labels = _labels([group[0] for group in groups])
    return {
        label: tuple(sorted(group, key=lambda run: run.seed))
        for label, group in zip(labels, groups, strict=True)
    }


def _labels(firsts: Sequence[ComparedRun]) -> list[str]:
    """The method, and what tells a group from its preset and from the others of its method."""
    labels = []
    for run in firsts:
        rivals = [other for other in firsts if other.method == run.method]
        told = {*_varying(rivals), *run.departures} - set(MARKED)
        names = dict.fromkeys(key for other in rivals for key in other.settings)
        keys = [key for key in names if key in told]
        parts = [run.method, *(f"{key}={value_text(run.settings.get(key))}" for key in keys)]
        marks = [mark for key, mark in MARKED.items() if run.settings.get(key)]
        labels.append(", ".join([" ".join(parts), *marks]))
    return labels


def label_without(group: Group, key: str) -> str:
    """A group's label without what it says of one key."""
    return group.label.replace(f" {key}={value_text(group.first.settings.get(key))}", "")


def value_text(value: Any) -> str:
    """A recipe's value in a few characters."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(map(value_text, value))
    return str(value)


def _varying(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    names = dict.fromkeys(key for run in runs for key in run.settings)
    return tuple(
        key
        for key in names
        if key not in (METHOD, SEED)
        and any(run.settings.get(key) != runs[0].settings.get(key) for run in runs)
    )


def _without_seed(run: ComparedRun) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key != SEED}


def _once(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    return list({run.name: run for run in runs}.values())


def _find(groups: Sequence[Group], wanted: str) -> Group:
    for found in (
        [g for g in groups if any(run.name == wanted for run in g.runs)],
        [g for g in groups if g.label == wanted],
        [g for g in groups if g.first.method == wanted],
    ):
        if len(found) == 1:
            return found[0]
    names = [name for g in groups for name in (g.label, *(run.name for run in g.runs))]
    raise UsageError(
        f"no single one of these runs is called {wanted!r}{did_you_mean(wanted, names)}",
        hint=f"--baseline takes one of {', '.join(names)}",
    )


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return over_seeds(known) if len(known) == len(values) else None
