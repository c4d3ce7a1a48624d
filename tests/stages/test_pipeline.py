"""The whole method through the functions behind the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clmoe.errors import InputStageError, UsageError
from clmoe.evaluation.samples import read_samples
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages import pipeline
from clmoe.stages.result import Result
from tests.conftest import SMALL

TASKS = ("recognition", "location", "count")


def run_again(runs: Path, *overrides: str, name: str = "small") -> Result:
    return pipeline.run(
        runs,
        recipe="shapes",
        overrides=[*SMALL, *overrides],
        name=name,
        dry_run=False,
        keep_going=False,
    )


def done(result: Result) -> list[str]:
    return [o.node_label for o in result.outcomes if o.status == "done"]


def test_whole_matrix_and_metrics(finished: Path) -> None:
    run = Run.open(finished)
    assert all(state.status == "fresh" for state in run.states())
    report = json.loads((run.path / "report" / "report.json").read_text())
    cells = {(c["row"], c["task"]): c for c in report["cells"]}
    assert len(cells) == 3 + 1 + 2 + 3
    assert all(cell["asked"] == 24 for cell in cells.values())
    by_hand = sum(cells[3, task]["percent"] for task in TASKS) / 3
    assert report["metrics"]["AP"]["value"] == pytest.approx(by_hand)
    diagonal = [cells[i, task]["percent"] for i, task in enumerate(TASKS, start=1)]
    last = [cells[3, task]["percent"] for task in TASKS]
    by_hand = sum(d - m for d, m in zip(diagonal[:2], last[:2], strict=True)) / 2
    assert report["metrics"]["AF"]["value"] == pytest.approx(by_hand)
    confusion = report["identification"]["confusion"]
    assert [sum(row) for row in confusion] == [24, 24, 24]


def test_cells_are_recounted_from_the_samples(finished: Path) -> None:
    run = Run.open(finished)
    samples = read_samples(run.output(Node("eval", "location", after="count"), "samples"))
    assert len({s.question_id for s in samples}) == 24
    right = sum(s.prediction.strip().upper() == s.answer.strip().upper() for s in samples)
    summary = run.manifest(Node("eval", "location", after="count")).summary
    assert summary["scores"]["exact"] == {"correct": right, "total": 24, "reason": None}
    assert summary["scores"]["vqa"]["correct"] is None
    assert "human answers" in summary["scores"]["vqa"]["reason"]
    assert {s.predicted_task for s in samples} <= set(TASKS)


def test_nothing_is_done_twice(runs: Path) -> None:
    assert done(run_again(runs)) == []


def test_merge_follows_equation_12_on_disk(finished: Path) -> None:
    run = Run.open(finished)
    theta, phi, before = (
        load_file(run.output(Node(stage, task), "adapter") / "adapter_model.safetensors")
        for stage, task in (("merge", "location"), ("train", "location"), ("merge", "recognition"))
    )
    config = json.loads(
        (run.output(Node("merge", "location"), "adapter") / "adapter_config.json").read_text()
    )
    report = json.loads(run.output(Node("merge", "location"), "merge").read_text())
    name = next(iter(config["router_of"]))
    weights = [change["weight"] for change in report["changes"][config["router_of"][name]]]
    assert {round(weight, 9) for weight in weights} <= {0.7, 0.3}
    key = f"base_model.model.{name}.clmoe_A.weight"
    width = config["r"] // config["experts"]
    for expert, weight in enumerate(weights):
        part = slice(expert * width, (expert + 1) * width)
        expected = weight * before[key][part] + (1 - weight) * phi[key][part]
        assert theta[key][part].numpy() == pytest.approx(expected.numpy(), abs=1e-6)
        assert not theta[key][part].equal(phi[key][part])


def test_first_merge_is_the_trained_adapter_byte_for_byte(finished: Path) -> None:
    run = Run.open(finished)
    merged, trained = (
        run.output(Node(stage, "recognition"), "adapter") / "adapter_model.safetensors"
        for stage in ("merge", "train")
    )
    assert merged.read_bytes() == trained.read_bytes()


def test_beta_one_ignores_the_task_router(runs: Path) -> None:
    """Equal to the answers without any task router; nothing is trained or merged for it."""
    result = run_again(runs, "method.name=mmoe", name="mmoe")
    assert not [label for label in done(result) if label.startswith(("train", "route", "merge"))]
    run = Run.open(runs, "mmoe")
    answers = read_samples(run.output(Node("eval", "recognition", after="count"), "samples"))
    assert all(s.predicted_task is None for s in answers)


def test_methods_share_what_is_equal(runs: Path) -> None:
    result = run_again(runs, "method.name=rmoe", name="rmoe")
    trained = [label for label in done(result) if label.startswith("train")]
    assert trained == ["train/03-count"]  # task 2 starts at theta_1 = phi_1 in both


def test_oracle_answers_with_the_true_task(runs: Path) -> None:
    run_again(runs, "eval.oracle_task=true", "eval.beta=0", name="oracle")
    run = Run.open(runs, "oracle")
    samples = read_samples(run.output(Node("eval", "location", after="count"), "samples"))
    assert {s.predicted_task for s in samples} == {"location"}


@pytest.mark.parametrize("method", ["vanilla", "multitask", "ema"])
def test_other_methods_run(runs: Path, method: str) -> None:
    result = run_again(runs, f"method.name={method}", name=method)
    ap = result.data["metrics"]["AP"]["value"]
    assert 0 <= ap <= 100
    if method == "multitask":
        assert [label for label in done(result) if label.startswith("train")] == ["train/00-all"]
        assert result.data["metrics"]["AF"]["value"] is None
    if method == "ema":
        report = json.loads(
            Run.open(runs, method).output(Node("merge", "count"), "merge").read_text()
        )
        (changes,) = report["changes"].values()
        assert [(c["role"], c["weight"]) for c in changes] == [("shared", 0.7)]


def test_gamma_one_keeps_shared_experts_bit_for_bit(runs: Path) -> None:
    run_again(runs, "merge.gamma=1.0", name="still")
    run = Run.open(runs, "still")
    theta, before, phi = (
        load_file(run.output(Node(stage, task), "adapter") / "adapter_model.safetensors")
        for stage, task in (("merge", "location"), ("merge", "recognition"), ("train", "location"))
    )
    report = json.loads(run.output(Node("merge", "location"), "merge").read_text())
    config = json.loads(
        (run.output(Node("merge", "location"), "adapter") / "adapter_config.json").read_text()
    )
    width = config["r"] // config["experts"]
    for linear, router in config["router_of"].items():
        key = f"base_model.model.{linear}.clmoe_B.weight"
        for change in report["changes"][router]:
            part = slice(change["expert"] * width, (change["expert"] + 1) * width)
            kept = phi if change["role"] == "specific" else before
            assert theta[key][:, part].equal(kept[key][:, part])


class TestOrder:
    def test_a_task_that_is_not_due_is_refused(self, tmp_path: Path) -> None:
        pipeline.prepare(
            tmp_path, recipe="shapes", source=None, overrides=SMALL, name="r", keep_going=False
        )
        with pytest.raises(UsageError, match="recognition comes before it") as caught:
            pipeline.train(tmp_path, run=None, task="count", overrides=[], again=False, yes=False)
        assert caught.value.hint == "clmoe train --task recognition"
        with pytest.raises(InputStageError, match="nothing is trained yet"):
            pipeline.merge(tmp_path, run=None, task=None, overrides=[])

    def test_retraining_lists_what_becomes_stale(self, runs: Path) -> None:
        with pytest.raises(UsageError, match=r"train/02-location.*eval/after-03-count/count"):
            pipeline.train(
                runs,
                run=None,
                task="recognition",
                overrides=["train.lr=1e-3"],
                again=False,
                yes=False,
            )

    def test_a_refused_command_changes_no_recipe(self, runs: Path) -> None:
        before = Run.open(runs).recipe
        with pytest.raises(UsageError):
            pipeline.train(
                runs,
                run=None,
                task="recognition",
                overrides=["train.lr=1e-3"],
                again=False,
                yes=False,
            )
        with pytest.raises(UsageError, match="merge/02-location"):
            pipeline.merge(runs, run=None, task=None, overrides=["merge.gamma=0.9"])
        assert Run.open(runs).recipe == before

    def test_everything_trained_says_so(self, runs: Path) -> None:
        with pytest.raises(UsageError, match="every task is trained"):
            pipeline.train(runs, run=None, task=None, overrides=[], again=False, yes=False)


def test_dry_run_makes_nothing(tmp_path: Path) -> None:
    result = pipeline.run(
        tmp_path / "runs",
        recipe="shapes",
        overrides=SMALL,
        name="plan",
        dry_run=True,
        keep_going=False,
    )
    assert [row[0] for row in result.tables[0].rows][:2] == [
        "prepare",
        "eval/after-00-base/recognition",
    ]
    assert not (tmp_path / "runs").exists()
    assert result.notes == ("23 of 23 stages would run",)


def test_beta_sweep_trains_nothing(runs: Path) -> None:
    result = run_again(runs, "eval.beta=0.25", name="beta")
    assert {label.split("/")[0] for label in done(result)} - {"report"} == {"eval"}


def test_equal_cells_do_not_share_a_report_that_names_another_method(runs: Path) -> None:
    result = run_again(runs, "method.name=mmoe", "eval.beta=0.5", name="same")
    assert done(result) == ["report"]
    written = json.loads((runs / "same" / "report" / "report.json").read_text())
    assert written["name"] == "mmoe"
