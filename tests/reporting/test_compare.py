"""Comparisons computed by hand: two tasks, four questions each."""

from __future__ import annotations

from math import sqrt

import pytest

from clmoe.reporting.compare import IDENTIFIED, ZERO_SHOT, Group, compare, value_text
from tests.reporting.builders import made_run

# m (percent): vanilla 75 | 25 75, clmoe 50 | 50 75; before any task 25 25.
VANILLA = {0: [1, 1], 1: [3], 2: [1, 3]}
CLMOE = {0: [1, 1], 1: [2], 2: [2, 3]}
T_2 = 4.302652729911275  # 97.5 % of Student's t with 2 degrees of freedom


def value(group: Group, name: str) -> float | None:
    spread = group.metric(name)
    return None if spread is None else spread.mean


def test_metrics_of_two_methods_by_hand() -> None:
    found = compare(
        [
            made_run("v", method="vanilla", rows=VANILLA),
            made_run("c", rows=CLMOE, identified=87.5),
        ]
    )
    vanilla, clmoe = found.groups
    assert [group.label for group in found.groups] == ["vanilla", "clmoe"]
    assert found.label == "after all 2 tasks"
    expected = {
        "AP": (50.0, 62.5),
        "AF": (50.0, 0.0),
        "AF-ref": (50.0, 25.0),  # against vanilla's 75: 75 - 25 and 75 - 50
        "forgetting-max": (50.0, 0.0),
        "BWT": (-50.0, 0.0),
        "FWT": (None, None),
        "LA": (75.0, 62.5),
        "AIA": (62.5, 56.25),
        ZERO_SHOT: (25.0, 25.0),
        IDENTIFIED: (None, 87.5),
    }
    assert {n: (value(vanilla, n), value(clmoe, n)) for n in expected} == expected
    assert vanilla.reason("FWT") == "missing: m[1][2] (count after color)"
    assert vanilla.reason(IDENTIFIED) == "no task index was used"
    assert clmoe.accuracy("color") is not None
    assert [clmoe.accuracy(task).mean for task in found.tasks] == [50.0, 75.0]  # type: ignore[union-attr]


def test_the_difference_and_its_interval_by_hand() -> None:
    """On color one of four questions changes, so the resampled mean is Binomial(4, 1/4) / 4.

    P(0) = 0.316 and P(<= 2) = 0.949 < 0.975 <= P(<= 3): the interval is 0 to 75. On count nothing
    changes. AP is the mean of both.
    """
    found = compare([made_run("v", method="vanilla", rows=VANILLA), made_run("c", rows=CLMOE)])
    assert set(found.differences) == {"clmoe"}
    difference = found.differences["clmoe"]
    color, count, both = *difference.tasks.values(), difference.overall
    assert (color.mean, color.low, color.high, color.questions) == (25.0, 0.0, 75.0, 4)
    assert (count.mean, count.low, count.high) == (0.0, 0.0, 0.0)
    assert (both.mean, both.low, both.high, both.questions) == (12.5, 0.0, 37.5, 8)
    assert difference.over_seeds is None


def test_the_baseline_changes_the_sign() -> None:
    runs = [made_run("v", method="vanilla", rows=VANILLA), made_run("c", rows=CLMOE)]
    for name in ("c", "clmoe"):
        found = compare(runs, baseline=name)
        assert found.baseline.label == "clmoe"
        assert found.differences["vanilla"].overall.mean == -12.5


class TestSeeds:
    """Runs that differ in train.seed alone are one group."""

    def seeds(self) -> list:
        rows = {0: {2: [2, 3]}, 1: {2: [1, 3]}, 2: {2: [3, 3]}}  # AP 62.5, 50, 75
        return [made_run(f"c{seed}", seed=seed, rows=rows[seed]) for seed in (2, 0, 1)]

    def test_mean_and_spread_by_hand(self) -> None:
        (group,) = compare(self.seeds()).groups
        assert group.seeds == (0, 1, 2)
        ap = group.metric("AP")
        assert ap is not None
        assert (ap.mean, ap.sd, ap.count) == (62.5, 12.5, 3)
        assert ap.high == pytest.approx(62.5 + T_2 * 12.5 / sqrt(3))
        assert ap.low == pytest.approx(62.5 - T_2 * 12.5 / sqrt(3))

    def test_scores_are_averaged_over_common_seeds_before_pairing(self) -> None:
        """Vanilla has seeds 0 and 1, both at AP 50: only those of clmoe count, 62.5 and 50."""
        vanilla = [made_run(f"v{s}", method="vanilla", seed=s, rows={2: [1, 3]}) for s in (0, 1, 7)]
        difference = compare([*vanilla, *self.seeds()]).differences["clmoe"]
        assert difference.seeds == (0, 1)
        assert difference.overall.mean == 6.25
        assert difference.over_seeds is not None
        assert difference.over_seeds.mean == 6.25
        assert difference.over_seeds.sd == pytest.approx(12.5 / sqrt(2))

    def test_without_a_common_seed_each_side_has_its_own(self) -> None:
        vanilla = made_run("v", method="vanilla", seed=9, rows={2: [1, 3]})
        difference = compare([vanilla, *self.seeds()]).differences["clmoe"]
        assert (difference.seeds, difference.overall.mean) == ((), 12.5)
        assert difference.over_seeds is None

    def test_one_undefined_seed_leaves_the_metric_undefined(self) -> None:
        whole = made_run("a", seed=0, rows={1: [2], 2: [2, 3]})
        found = compare([whole, made_run("b", seed=1, rows={2: [2, 3]})]).groups[0]
        assert value(found, "AF") is None
        assert found.reason("AF") == "missing: m[1][1] (color after color)"
        assert value(found, "AP") == 62.5


class TestLabels:
    """The method, and the keys that tell a group from others of its method."""

    def labels(self, *runs: object) -> list[str]:
        return [group.label for group in compare(list(runs)).groups]  # type: ignore[arg-type]

    def test_only_what_differs_inside_a_method(self) -> None:
        assert self.labels(
            made_run("a", merge__gamma=0.6, train__lr=1e-3),
            made_run("b", merge__gamma=0.7, train__lr=1e-3),
            made_run("c", method="vanilla", train__lr=3e-4),
        ) == ["clmoe merge.gamma=0.6", "clmoe merge.gamma=0.7", "vanilla"]

    def test_given_tasks_are_always_marked(self) -> None:
        assert self.labels(
            made_run("a", eval__oracle_task=True), made_run("b", protocol__task_known=True)
        ) == ["clmoe, true task ids", "clmoe, task given"]

    def test_a_key_that_departs_from_the_preset_is_always_told(self) -> None:
        assert self.labels(
            made_run("a", merge__rule="none"),
            made_run("b", method="vanilla", strategy__kind="er"),
            made_run("c", method="er", eval__beta=0.5),
        ) == ["clmoe merge.rule=none", "vanilla strategy.kind=er", "er eval.beta=0.5"]

    def test_it_is_told_once_beside_what_differs(self) -> None:
        assert self.labels(
            made_run("a", merge__rule="none", merge__gamma=0.6),
            made_run("b", merge__rule="none"),
            made_run("c", adapter__experts=4),
        ) == [
            "clmoe adapter.experts=8 merge.gamma=0.6 merge.rule=none",
            "clmoe adapter.experts=8 merge.gamma=0.7 merge.rule=none",
            "clmoe adapter.experts=4 merge.gamma=0.7 merge.rule=roles",
        ]

    def test_a_size_that_no_preset_tells_methods_apart_by_is_none(self) -> None:
        assert self.labels(
            made_run("a", route__top_k=3), made_run("v", method="vanilla", route__top_k=3)
        ) == ["clmoe", "vanilla"]

    @pytest.mark.parametrize(
        ("given", "text"),
        [(0.0003, "0.0003"), (1, "1"), (True, "true"), (None, "null"), (["a", "b"], "a,b")],
    )
    def test_values_in_few_characters(self, given: object, text: str) -> None:
        assert value_text(given) == text


class TestReference:
    """AF-ref is taken to the diagonal of vanilla: same seed, order, data and base."""

    def reason(self, *others: object, **changes: object) -> str | None:
        run = made_run("c", rows=CLMOE, **changes)  # type: ignore[arg-type]
        return compare([run], references=list(others)).groups[0].reason("AF-ref")  # type: ignore[arg-type]

    def test_a_run_that_is_not_compared_may_be_the_reference(self) -> None:
        vanilla = made_run("v", method="vanilla", rows=VANILLA)
        (group,) = compare([made_run("c", rows=CLMOE)], references=[vanilla]).groups
        assert value(group, "AF-ref") == 25.0

    @pytest.mark.parametrize("other", [{"seed": 1}, {"data__source": "easy_vqa"}])
    def test_another_seed_or_other_data_is_none(self, other: dict[str, object]) -> None:
        vanilla = made_run("v", method="vanilla", rows=VANILLA, **other)  # type: ignore[arg-type]
        wanted = "no vanilla run of the same data, order and seed is among these runs"
        assert self.reason(vanilla) == wanted

    def test_vanilla_in_name_alone_is_none(self) -> None:
        replaying = made_run("v", method="vanilla", rows=VANILLA, strategy__kind="er")
        wanted = "no vanilla run of the same data, order and seed is among these runs"
        assert self.reason(replaying) == wanted
        assert self.reason(replaying, made_run("w", method="vanilla", rows=VANILLA)) is None

    def test_two_that_differ_are_not_chosen_between(self) -> None:
        first = made_run("v1", method="vanilla", rows=VANILLA, train__lr=1e-3)
        second = made_run("v2", method="vanilla", rows={1: [4], 2: [1, 3]}, train__lr=2e-3)
        assert self.reason(first, second) == "v1, v2 differ: which is the reference is not clear"
        same = made_run("v2", method="vanilla", rows=VANILLA, train__lr=2e-3)
        assert self.reason(first, same) is None
