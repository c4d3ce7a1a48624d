"""What happened inside a run, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from clmoe.evaluation.samples import Sample
from clmoe.reporting.understanding import (
    RoutedTask,
    by_type,
    expert_usage,
    misidentification,
    momentum_log,
    tables,
)


def routed(task: str, *experts: int) -> RoutedTask:
    weights = [0.3 if i in experts else 0.2 for i in range(4)]
    return RoutedTask(task, {"layer": weights}, {"layer": experts}, {"layer": 0.1})


def sample(task: str, predicted: str | None, *, right: bool, kind: str | None = "what") -> Sample:
    return Sample("q", task, kind, "?", "yes" if right else "no", "yes", (), predicted, "0")


def score(one: Sample) -> float:
    return float(one.prediction == one.answer)


class TestExperts:
    """Roles of Eq 10 over three tasks: {0, 1}, then {1, 2}, then {0, 1}."""

    def usage(self) -> dict[str, Any]:
        (found,) = expert_usage([routed("a", 0, 1), routed("b", 1, 2), routed("c", 0, 1)])
        return found

    def test_roles_against_the_union_of_earlier_tasks(self) -> None:
        assert [entry["roles"] for entry in self.usage()["tasks"]] == [
            ["specific", "specific", "none", "none"],
            ["none", "shared", "specific", "none"],
            ["shared", "shared", "none", "none"],
        ]

    def test_who_uses_an_expert_over_time(self) -> None:
        found = self.usage()
        assert found["users"] == [["a", "c"], ["a", "b", "c"], ["b"], []]
        assert (found["shared"], found["specific"], found["unused"]) == ([0, 1], [2], [3])

    def test_weights_and_gaps_are_kept(self) -> None:
        entry = self.usage()["tasks"][1]
        assert entry["weights"] == [0.2, 0.3, 0.3, 0.2]
        assert (entry["experts"], entry["gap"]) == ([1, 2], 0.1)

    def test_without_routers_there_is_nothing(self) -> None:
        assert expert_usage([]) == []


def change(expert: int, role: str, weight: float, moved: float | None) -> dict[str, Any]:
    return {
        "expert": expert, "role": role, "weight": weight,
        "from_previous": moved, "from_current": 0.5, "discarded": None,
    }  # fmt: skip


def report(*changes: dict[str, Any], first: bool = False) -> dict[str, Any]:
    counts = {"total": 6, "differ_from_current": 6, "differ_from_previous": 4}
    return {
        "first_task": first, "gamma": 0.7, "space": "factors", "factors": counts,
        "changes": {"layer": list(changes)} if changes else {},
    }  # fmt: skip


def test_momentum_by_role() -> None:
    merge = report(
        change(0, "specific", 0.3, 0.4),
        change(1, "shared", 0.7, 0.1),
        change(2, "none", 0.7, 0.2),
        change(3, "none", 0.7, 0.3),
    )
    first, second = momentum_log([("a", report(first=True)), ("b", merge)])
    assert {role: entry["experts"] for role, entry in first["roles"].items()} == {
        "specific": 0, "shared": 0, "none": 0,
    }  # fmt: skip
    assert first["roles"]["none"]["from_previous"] is None
    assert second["roles"]["none"]["from_previous"] == pytest.approx(0.25)
    assert second["roles"]["specific"]["lambdas"] == [0.3]
    assert second["roles"]["shared"] == {
        "experts": 1, "lambdas": [0.7], "from_previous": 0.1, "from_current": 0.5,
    }  # fmt: skip
    assert second["report"] == merge
    assert (first["report"]["gamma"], second["report"]["gamma"]) == (None, 0.7)


def test_a_change_without_a_number_leaves_the_mean_undefined() -> None:
    (entry,) = momentum_log(
        [("b", report(change(0, "none", 0.7, None), change(1, "none", 0.7, 1)))]
    )
    assert entry["roles"]["none"]["from_previous"] is None


ANSWERED = [
    sample("a", "a", right=True),
    sample("a", "a", right=False, kind="how"),
    sample("a", "b", right=False),
    sample("b", "b", right=True),
    sample("b", "a", right=True, kind=None),
    sample("b", "b", right=True, kind=None),
]


def test_found_and_mistaken_tasks_by_hand() -> None:
    found = misidentification(ANSWERED, score=score)
    pairs = {
        name: [(part[side]["correct"], part[side]["asked"]) for side in ("right", "wrong")]
        for name, part in (("all", found), *found["tasks"].items())
    }
    assert pairs == {"all": [(3, 4), (1, 2)], "a": [(1, 2), (0, 1)], "b": [(2, 2), (1, 1)]}
    assert found["right"]["percent"] == 75.0
    assert found["right"]["interval"]["low"] == pytest.approx(30.06, abs=0.01)  # Wilson, 3 of 4


def test_no_mistaken_question_has_no_percentage() -> None:
    found = misidentification(ANSWERED[3:4], score=score)
    assert found["wrong"] == {"correct": 0.0, "asked": 0, "percent": None, "interval": None}


def test_question_types_by_hand() -> None:
    found = by_type(ANSWERED, score=score)
    assert [(e["task"], e["type"], e["correct"], e["asked"]) for e in found] == [
        ("a", "what", 1.0, 2), ("a", "how", 0.0, 1), ("b", "what", 1.0, 1), ("b", None, 2.0, 2),
    ]  # fmt: skip
    assert sum(entry["asked"] for entry in found) == len(ANSWERED)


class TestTables:
    """Only what a run has."""

    def found(self, **changes: Any) -> dict[str, Any]:
        nothing = {
            "title": "clmoe", "experts": [], "momentum": [], "misidentification": None,
            "types": [], "routed": 0,
        }  # fmt: skip
        return {**nothing, **changes}

    def test_nothing_for_a_plain_run(self) -> None:
        plain = by_type([sample("a", None, right=True, kind=None)], score=score)
        only_first = momentum_log([("a", report(first=True))])
        assert tables(self.found(types=plain, momentum=only_first)) == ()

    def test_momentum(self) -> None:
        merge = report(change(0, "specific", 0.3, 0.4), change(1, "none", 0.7, 0.1))
        log = momentum_log([("a", report(first=True)), ("b", merge)])
        (table,) = tables(self.found(momentum=log))
        assert table.rows == [["b", "1", "0", "1", "0.400", "-", "0.100", "4/6"]]

    def test_identification_and_types(self) -> None:
        cost = misidentification(ANSWERED, score=score)
        types = by_type(ANSWERED, score=score)
        first, second = tables(self.found(misidentification=cost, types=types))
        assert first.rows[-1] == ["all", "3/4", "75.0", "1/2", "50.0"]
        assert second.rows[-1] == ["b", "(no type)", "2/2", "100.0"]
