"""What happened inside a run: experts, momentum, task identification, question types.

All of it is counted from what the stages wrote: w_T and E_t (Eq 6), the roles of Eq 10, the merge
reports of Eq 12, and the answered questions of the newest row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from statistics import fmean
from typing import Any

from clmoe.evaluation.samples import Sample
from clmoe.method.expert_roles import expert_roles
from clmoe.metrics.intervals import wilson
from clmoe.reporting.tables import DASH, Table, percent

Score = Callable[[Sample], float]
NO_TYPE = "(no type)"


@dataclass(frozen=True)
class RoutedTask:
    """The task router of one task.

    Attributes:
        task: The task.
        weights: w_T of each router, n numbers.
        experts: E_t of each router.
        gaps: The K-th largest weight minus the next, of each router.
    """

    task: str
    weights: Mapping[str, Sequence[float]]
    experts: Mapping[str, Sequence[int]]
    gaps: Mapping[str, float | None]


def expert_usage(tasks: Sequence[RoutedTask]) -> list[dict[str, Any]]:
    """Of each router, what each task uses of it and in which role.

    Args:
        tasks: In the order of learning, all with the same routers.

    Returns:
        A dictionary for each router: its ``router``; ``tasks``, each with ``weights`` (w_T),
        ``experts`` (E_t), ``gap`` and the ``roles`` of Eq 10 (E_pre being the union of earlier
        tasks' experts; for the first task every expert of E_1 is specific); and over time
        ``users``, the tasks whose E_t hold each expert, with the experts that several tasks
        (``shared``), one (``specific``) or none (``unused``) of them use.
    """
    found = []
    for router in tasks[0].weights if tasks else ():
        earlier: set[int] = set()
        entries = []
        count = len(tasks[0].weights[router])
        users: list[list[str]] = [[] for _ in range(count)]
        for task in tasks:
            chosen = task.experts[router]
            entries.append(
                {
                    "task": task.task,
                    "weights": list(task.weights[router]),
                    "experts": list(chosen),
                    "gap": task.gaps[router],
                    "roles": list(expert_roles(chosen, earlier=earlier, experts=count)),
                }
            )
            earlier |= set(chosen)
            for expert in chosen:
                users[expert].append(task.task)
        found.append(
            {
                "router": router,
                "tasks": entries,
                "users": users,
                "shared": [i for i, names in enumerate(users) if len(names) > 1],
                "specific": [i for i, names in enumerate(users) if len(names) == 1],
                "unused": [i for i, names in enumerate(users) if not names],
            }
        )
    return found


def momentum_log(merges: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Of each task, what its merge did.

    Args:
        merges: (task, the merge's own report as JSON holds it) in the order of learning.

    Returns:
        A dictionary for each task: the ``report``, and ``roles``: for each role the number of
        ``experts`` over all routers, its ``lambdas``, and the mean relative change
        ``from_previous`` (of theta_t from theta_(t-1)) and ``from_current`` (from phi_t).
    """
    log = []
    for task, report in merges:
        changes = [change for router in report["changes"].values() for change in router]
        roles = {}
        for role in ("specific", "shared", "none"):
            those = [change for change in changes if change["role"] == role]
            roles[role] = {
                "experts": len(those),
                "lambdas": sorted({change["weight"] for change in those}),
                **{side: _mean(those, side) for side in ("from_previous", "from_current")},
            }
        # Runs with another gamma share the first task's merge, which merges nothing.
        own = {**report, "gamma": None} if report["first_task"] else dict(report)
        log.append({"task": task, "roles": roles, "report": own})
    return log


def misidentification(samples: Sequence[Sample], *, score: Score) -> dict[str, Any]:
    """How well questions are answered whose task was found, and those whose was not.

    The two are not the same questions, so their gap is no cost by itself: a question that is hard
    to place may be hard to answer. A run with ``eval.oracle_task`` gives the cost.

    Args:
        samples: Answered questions with the task that each was taken for.
        score: In [0, 1].

    Returns:
        ``right`` and ``wrong`` over all questions, and ``tasks`` with both of each task.
    """
    return {
        **_right_and_wrong(samples, score),
        "tasks": {
            task: _right_and_wrong([s for s in samples if s.task == task], score)
            for task in dict.fromkeys(s.task for s in samples)
        },
    }


def by_type(samples: Sequence[Sample], *, score: Score) -> list[dict[str, Any]]:
    """Accuracy of each question type of each task, in the order of first appearance."""
    groups: dict[tuple[str, str | None], list[float]] = {}
    for sample in samples:
        groups.setdefault((sample.task, sample.kind), []).append(score(sample))
    return [{"task": task, "type": kind, **_share(s)} for (task, kind), s in groups.items()]


def tables(found: Mapping[str, Any]) -> tuple[Table, ...]:
    """What fits on a page of the report: experts, momentum, identification, question types."""
    title = found["title"]
    result = []
    if found["experts"]:
        rows = [
            [entry["router"], *(_list(entry[name]) for name in ("shared", "specific", "unused"))]
            for entry in found["experts"]
        ]
        columns = ["router", "experts of several tasks", "of one task", "of none"]
        result.append(Table(f"{title}: experts over {found['routed']} tasks", columns, rows))
    if any(not entry["report"]["first_task"] for entry in found["momentum"]):
        result.append(_momentum_table(found["momentum"], title=title))
    if found["misidentification"] is not None:
        rows = [
            [task, *_cells(both["right"]), *_cells(both["wrong"])]
            for task, both in found["misidentification"]["tasks"].items()
        ]
        both = found["misidentification"]
        rows.append(["all", *_cells(both["right"]), *_cells(both["wrong"])])
        columns = ["task", "task found", "percent", "task mistaken", "percent"]
        result.append(Table(f"{title}: accuracy by task identification", columns, rows))
    if any(entry["type"] is not None for entry in found["types"]):
        rows = [
            [entry["task"], entry["type"] or NO_TYPE, *_cells(entry)] for entry in found["types"]
        ]
        columns = ["task", "question type", "right/asked", "percent"]
        result.append(Table(f"{title}: accuracy by question type", columns, rows))
    return tuple(result)


def _momentum_table(log: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    rows = []
    for entry in log:
        report, roles = entry["report"], entry["roles"]
        if report["first_task"]:
            continue
        counts = report["factors"]
        rows.append(
            [
                entry["task"],
                *(str(roles[role]["experts"]) for role in roles),
                *(_number(roles[role]["from_previous"]) for role in roles),
                f"{counts['differ_from_previous']}/{counts['total']}",
            ]
        )
    names = ("specific", "shared", "none")
    columns = ["merge of", *names, *(f"change, {name}" for name in names), "tensors changed"]
    return Table(
        f"{title}: momentum; experts by role, their mean relative change from theta_(t-1)",
        columns,
        rows,
    )


def _right_and_wrong(samples: Sequence[Sample], score: Score) -> dict[str, Any]:
    return {
        "right": _share([score(s) for s in samples if s.predicted_task == s.task]),
        "wrong": _share([score(s) for s in samples if s.predicted_task != s.task]),
    }


def _share(scores: Sequence[float]) -> dict[str, Any]:
    """k, N, percent and its Wilson interval; without questions there is no percentage."""
    asked, correct = len(scores), fsum(scores)
    if not asked:
        return {"correct": 0.0, "asked": 0, "percent": None, "interval": None}
    interval = asdict(wilson(correct, asked=asked))
    share = 100 * correct / asked
    return {"correct": correct, "asked": asked, "percent": share, "interval": interval}


def _mean(changes: Sequence[Mapping[str, Any]], side: str) -> float | None:
    known = [change[side] for change in changes if change[side] is not None]
    return fmean(known) if known and len(known) == len(changes) else None


def _cells(share: Mapping[str, Any]) -> list[str]:
    return [f"{share['correct']:g}/{share['asked']}", percent(share["percent"])]


def _list(experts: Sequence[int]) -> str:
    return " ".join(map(str, experts)) or DASH


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"
