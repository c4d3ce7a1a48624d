"""Which stages of several plans are the same work, and the record of a study's runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from clmoe.errors import ClmoeError, UsageError
from clmoe.recipe import resolve_text
from clmoe.runs.identities import identities
from clmoe.runs.plan import Plan
from clmoe.runs.study_record import (
    StudyRecord,
    read_record,
    study_names,
    study_runs,
    write_record,
)
from tests.runs.fake_stages import bring_up_to_date, make_run

TEN = (
    "recognition", "location", "judge", "commonsense", "count",
    "action", "color", "type", "subcategory", "causal",
)  # fmt: skip
FOUR = {
    "clmoe": ("method.name=clmoe",),
    "mmoe": ("method.name=mmoe",),
    "rmoe": ("method.name=rmoe",),
    "moelora": ("merge.rule=none", "eval.beta=1.0", "adapter.experts=8"),
}


def plan_of(*overrides: str, tasks: tuple[str, ...] = TEN) -> Plan:
    return Plan(resolve_text("name: x", origin="x", overrides=overrides).recipe, tasks)


def trainings(*plans: Plan) -> set[str]:
    return {
        identity
        for plan in plans
        for label, identity in identities(plan).items()
        if label.startswith("train/")
    }


class TestIdentities:
    """Equal where the fingerprint will be equal."""

    def test_four_methods_over_ten_tasks_train_18_times(self) -> None:
        """Task 1 is everybody's; so is task 2, for theta_1 = phi_1; then two families of 8."""
        plans = {name: plan_of(*overrides) for name, overrides in FOUR.items()}
        assert all(len(trainings(plan)) == 10 for plan in plans.values())
        assert len(trainings(*plans.values())) == 1 + 1 + 8 * 2
        assert trainings(plans["clmoe"]) == trainings(plans["mmoe"])
        assert trainings(plans["rmoe"]) == trainings(plans["moelora"])
        assert len(trainings(plans["clmoe"]) & trainings(plans["rmoe"])) == 2

    def test_the_named_preset_is_the_same_as_its_keys(self) -> None:
        assert trainings(plan_of("method.name=moelora")) == trainings(plan_of(*FOUR["moelora"]))

    def test_a_sweep_of_beta_trains_and_merges_nothing(self) -> None:
        first, *others = (identities(plan_of(f"eval.beta={b}")) for b in (0.1, 0.5, 0.9))
        for other in others:
            differing = {label for label in first if first[label] != other[label]}
            assert differing
            assert all(label.startswith("eval/after-") for label in differing)
            assert not any(label.startswith("eval/after-00") for label in differing)

    def test_a_sweep_of_gamma_shares_the_first_two_trainings(self) -> None:
        sweep = [plan_of(f"merge.gamma={gamma}") for gamma in (0.6, 0.7, 0.8)]
        assert len(trainings(*sweep)) == 2 + 3 * 8

    def test_orders_share_a_common_beginning(self) -> None:
        one, other = (plan_of(tasks=tasks) for tasks in (("a", "b", "c"), ("a", "c", "b")))
        assert len(trainings(one, other)) == 1 + 2 * 2

    @pytest.mark.parametrize("changed", ["train.seed=1", "train.lr=1", "data.seed=3"])
    def test_what_training_depends_on_changes_all(self, changed: str) -> None:
        assert not trainings(plan_of()) & trainings(plan_of(changed))

    def test_speed_changes_nothing(self) -> None:
        assert identities(plan_of()) == identities(plan_of("eval.batch_size=1"))

    def test_equal_identities_are_one_version_of_the_store(self, tmp_path: Path) -> None:
        """Counted against what runs really commit, with stages that write small files."""
        plans = []
        for name, overrides in FOUR.items():
            run = make_run(tmp_path, *overrides, name=name)
            bring_up_to_date(run)
            plans.append(run.plan)
        assert len(plans[0].tasks) == 3
        for stage in ("train", "route", "merge", "index", "eval"):
            versions = list((tmp_path / ".store" / stage).glob("[!.]*"))
            counted = {
                identity
                for plan in plans
                for label, identity in identities(plan).items()
                if label.startswith(f"{stage}/")
            }
            assert len(versions) == len(counted), stage
        assert len(list((tmp_path / ".store" / "train").glob("[!.]*"))) == 1 + 1 + 2 * 1


class TestRecord:
    """study.json says which runs belong together."""

    RECORD = StudyRecord(
        name="gamma",
        description="What it shows.",
        recipe="shapes",
        keys=("merge.gamma", "protocol.order"),
        runs={
            "gamma-gamma0.6": {"merge.gamma": 0.6, "protocol.order": ["b", "a"]},
            "gamma-best": {"merge.gamma": 0.7, "protocol.order": "forward", "name": "best"},
        },
    )

    def test_it_is_read_as_written(self, tmp_path: Path) -> None:
        write_record(tmp_path, self.RECORD)
        assert read_record(tmp_path, "gamma") == self.RECORD
        assert study_names(tmp_path) == ["gamma"]
        assert study_runs(tmp_path, "gamma") == [
            ("gamma-gamma0.6", {"merge.gamma": 0.6, "protocol.order": ["b", "a"]}),
            ("gamma-best", {"merge.gamma": 0.7, "protocol.order": "forward", "name": "best"}),
        ]

    def test_it_is_no_run(self, tmp_path: Path) -> None:
        write_record(tmp_path, self.RECORD)
        assert make_run(tmp_path).layout.run_names() == ["one"]

    def test_unknown_names_are_near_some(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as failure:
            study_runs(tmp_path, "gama")
        assert str(failure.value) == f"there is no study 'gama' in {tmp_path}"
        write_record(tmp_path, self.RECORD)
        with pytest.raises(UsageError) as failure:
            study_runs(tmp_path, "gama")
        assert str(failure.value) == (
            f"there is no study 'gama' in {tmp_path}; did you mean 'gamma'?; the studies are gamma"
        )

    @pytest.mark.parametrize(
        ("text", "message"), [("{", "is damaged"), ('{"schema": 2}', "by a newer version")]
    )
    def test_files_that_cannot_be_read(self, tmp_path: Path, text: str, message: str) -> None:
        write_record(tmp_path, self.RECORD).write_text(text, encoding="utf-8")
        with pytest.raises(ClmoeError, match=message):
            study_runs(tmp_path, "gamma")
