"""Comparing real runs, and understanding one: numbers recounted from what the stages wrote."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clmoe.errors import InputStageError, UsageError
from clmoe.evaluation.samples import read_samples
from clmoe.reporting.compare import compare
from clmoe.reporting.curves import sweep
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.runs.study_record import StudyRecord, write_record
from clmoe.stages import pipeline
from clmoe.stages.compare import result_settings
from clmoe.stages.result import Result
from tests.conftest import SMALL
from tests.reporting.builders import made_run

TASKS = ("recognition", "location", "count")


@pytest.fixture(scope="module")
def pair(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run beside a vanilla one, a twin with true task ids, and one without cells."""
    runs = tmp_path_factory.mktemp("pair") / "runs"
    shutil.copytree(finished, runs, symlinks=True)
    for name, change in (("v", "method.name=vanilla"), ("true", "eval.oracle_task=true")):
        pipeline.run(
            runs, recipe="shapes", overrides=[*SMALL, change], name=name, dry_run=False,
            keep_going=False,
        )  # fmt: skip
    pipeline.prepare(
        runs, recipe="shapes", source=None, overrides=SMALL, name="begun", keep_going=False
    )
    members = {"small": {}, "v": {}, "begun": {}, "planned": {}}
    write_record(runs, StudyRecord("both", "", "shapes", ("method.name",), members))
    return runs


def compared(runs: Path, *names: str, **changes: Any) -> Result:
    options = {
        "baseline": None, "scorer": None, "paper": "none", "form": None, "out": None,
        "figures": None,
    }  # fmt: skip
    return pipeline.compare(runs, names=names, **{**options, **changes})


def group(result: Result, label: str) -> dict[str, Any]:
    found: dict[str, Any] = next(g for g in result.data["groups"] if g["label"] == label)
    return found


def test_numbers_are_those_of_the_reports(pair: Path) -> None:
    result = compared(pair, "v", "small")
    for name, label in (("v", "vanilla"), ("small", "clmoe")):
        report = json.loads((pair / name / "report" / "report.json").read_text())
        metrics = group(result, label)["metrics"]
        for metric in ("AP", "AF", "LA", "AIA", "BWT", "forgetting-max"):
            assert metrics[metric]["mean"] == report["metrics"][metric]["value"]
        assert metrics["zero-shot"]["mean"] == report["zero_shot"]["value"]
    difference = group(result, "clmoe")["difference"]["overall"]
    aps = [group(result, label)["metrics"]["AP"]["mean"] for label in ("clmoe", "vanilla")]
    assert difference["mean"] == pytest.approx(aps[0] - aps[1])
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert difference["questions"] == 3 * 24


def test_af_ref_recounted_from_vanillas_diagonal(pair: Path) -> None:
    result = compared(pair, "small", "v")
    runs = {name: Run.open(pair, name) for name in ("v", "small")}

    def right(run: str, task: str, after: str) -> int:
        samples = read_samples(runs[run].output(Node("eval", task, after=after), "samples"))
        return sum(s.prediction.strip().upper() == s.answer.strip().upper() for s in samples)

    by_hand = [100 * (right("v", t, t) - right("small", t, "count")) / 24 for t in TASKS[:2]]
    assert group(result, "clmoe")["metrics"]["AF-ref"]["mean"] == pytest.approx(sum(by_hand) / 2)


def test_a_sibling_of_the_study_is_the_reference(pair: Path) -> None:
    alone = group(compared(pair, "small"), "clmoe")["metrics"]["AF-ref"]
    beside = group(compared(pair, "small", "v"), "clmoe")["metrics"]["AF-ref"]
    assert alone["mean"] is not None
    assert alone == beside


def test_a_study_leaves_out_what_is_not_finished(pair: Path) -> None:
    result = compared(pair, "both", baseline="v")
    assert [g["label"] for g in result.data["groups"]] == ["clmoe", "vanilla"]
    assert result.data["baseline"] == "vanilla"
    assert any(note.startswith("left out begun: ") for note in result.notes)
    assert "left out planned: not started yet" in result.notes
    with pytest.raises(InputStageError, match="no row of the accuracy matrix is up to date"):
        compared(pair, "small", "begun")


def test_the_cost_of_misidentification_with_a_twin(pair: Path) -> None:
    result = compared(pair, "small", "true")
    (table,) = (t for t in result.tables if t.title.startswith("cost of misidentified"))
    aps = [g["metrics"]["AP"]["mean"] for g in result.data["groups"]]
    assert table.rows[0][4] == f"{aps[1] - aps[0]:+.2f}"
    report = pipeline.report(pair, run="small", kind="all", overrides=[])
    assert table.rows[0] in [row for t in report.tables for row in t.rows]


def test_the_cost_of_misidentification_as_data(pair: Path) -> None:
    report = pipeline.report(pair, run="small", kind="all", overrides=[])
    oracle = report.data["understanding"]["oracle"]
    aps = [g["metrics"]["AP"]["mean"] for g in compared(pair, "small", "true").data["groups"]]
    assert (oracle["run"], oracle["predicted"], oracle["true"]) == ("true", *aps)
    assert oracle["difference"] == pytest.approx(aps[1] - aps[0])
    assert oracle["identified"] == report.data["identification"]["overall"]
    low, high = oracle["interval"]["low"], oracle["interval"]["high"]
    (table,) = (t for t in report.tables if t.title.startswith("cost of misidentified"))
    assert table.rows[0][1:] == [
        f"{oracle['identified']:.1f}", f"{aps[0]:.2f}", f"{aps[1]:.2f}",
        f"{oracle['difference']:+.2f}", f"{low:.2f} to {high:.2f}",
    ]  # fmt: skip
    quiet = pipeline.report(pair, run="small", kind="ap-af", overrides=[])
    assert quiet.data["understanding"]["oracle"] == oracle
    stored = json.loads((pair / "small" / "report" / "understanding.json").read_text())
    assert "oracle" not in stored  # it is of another run


def test_without_a_twin_there_is_no_cost(pair: Path) -> None:
    for name in ("v", "true"):
        report = pipeline.report(pair, run=name, kind="all", overrides=[])
        assert report.data["understanding"]["oracle"] is None


def test_files_in_every_format(pair: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "md", "tex", "json"):
        out = tmp_path / "deep" / f"t.{suffix}"
        result = compared(pair, "v", "small", out=out)
        assert result.tables
        assert out.read_text(encoding="utf-8")
        assert result.notes[-1].endswith(f"written to {out}")
    printed = compared(pair, "v", "small", form="csv")
    assert printed.tables == ()
    (text,) = printed.notes
    assert text + "\n" == (tmp_path / "deep" / "t.csv").read_text()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert {line["quantity"] for line in lines} > {*TASKS, "AP"}
    with pytest.raises(UsageError, match="a table is for the terminal"):
        compared(pair, "v", form="table", out=tmp_path / "t.txt")


def test_figures_of_a_comparison(pair: Path, tmp_path: Path) -> None:
    result = compared(pair, "v", "small", figures=tmp_path / "drawn")
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["over_time.png", "over_time.svg"]
    assert result.data["figures"] == [str(tmp_path / "drawn" / name) for name in names]


def test_unknown_names_and_scorers(pair: Path) -> None:
    with pytest.raises(UsageError, match=r"no run and no study 'smal'.*did you mean 'small'"):
        compared(pair, "smal")
    with pytest.raises(UsageError, match="small has no vqa accuracy: needs at least 4 human"):
        compared(pair, "small", scorer="vqa")


def test_gamma_of_one_half_is_on_the_curve(pair: Path) -> None:
    """It needs merge.allow_any_gamma, which changes no result."""
    small = Run.open(pair, "small")
    half = small.preview(["merge.gamma=0.5", "merge.allow_any_gamma=true"])
    runs = [
        replace(made_run(name), settings=result_settings(run))
        for name, run in (("small", small), ("half", half))
    ]
    (curve,) = sweep(compare(runs), key="merge.gamma")
    assert [gamma for gamma, _ in curve] == [0.5, 0.7]


def test_extra_memory_is_that_of_the_trainings(pair: Path) -> None:
    run = Run.open(pair, "small")
    stored = [run.manifest(Node("train", task)).summary for task in TASKS]
    group = compared(pair, "small").data["groups"][0]
    assert group["extra_bytes"] == max(summary["extra_bytes"] for summary in stored)
    assert group["extra"] == max(
        (s["extra"] for s in stored), key=lambda parts: sum(parts.values())
    )


@pytest.fixture(scope="module")
def found(pair: Path) -> dict[str, Any]:
    """understanding.json of the full method."""
    text = (pair / "small" / "report" / "understanding.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


class TestUnderstanding:
    """What `clmoe report` says of the inside of a run."""

    def test_experts_are_those_of_the_routers(self, pair: Path, found: dict[str, Any]) -> None:
        run = Run.open(pair, "small")
        for place, task in enumerate(TASKS):
            stored = run.manifest(Node("route", task)).summary["experts"]
            for router in found["experts"]:
                entry = router["tasks"][place]
                assert entry["experts"] == stored[router["router"]]
                assert sum(entry["weights"]) == pytest.approx(1)

    def test_roles_are_those_of_the_merges(self, pair: Path, found: dict[str, Any]) -> None:
        run = Run.open(pair, "small")
        for place, task in enumerate(TASKS[1:], start=1):
            merged = json.loads(run.output(Node("merge", task), "merge").read_text())
            assert found["momentum"][place]["report"] == merged
            for router in found["experts"]:
                roles = [change["role"] for change in merged["changes"][router["router"]]]
                assert roles == router["tasks"][place]["roles"]
        assert found["momentum"][0]["report"]["first_task"]

    def test_counts_of_questions_agree(self, found: dict[str, Any]) -> None:
        cost, confusion = found["misidentification"], found["identification"]["confusion"]
        assert cost["right"]["asked"] == sum(confusion[i][i] for i in range(3))
        assert cost["right"]["asked"] + cost["wrong"]["asked"] == 72
        by_task = Counter({task: 0 for task in TASKS})
        for entry in found["types"]:
            by_task[entry["task"]] += entry["asked"]
        assert by_task == dict.fromkeys(TASKS, 24)

    def test_a_plain_method_has_no_experts(self, pair: Path) -> None:
        found = json.loads((pair / "v" / "report" / "understanding.json").read_text())
        assert (found["experts"], found["momentum"], found["misidentification"]) == ([], [], None)
        oracle = json.loads((pair / "true" / "report" / "understanding.json").read_text())
        assert oracle["misidentification"] is None

    def test_figures_only_where_asked(self, pair: Path) -> None:
        folder = pair / "small" / "report" / "figures"
        pipeline.report(pair, run="small", kind="all", overrides=[])
        assert not folder.exists()
        result = pipeline.report(pair, run="small", kind="none", overrides=[], figures=True)
        assert sorted(path.name for path in folder.iterdir()) == [
            "experts.png", "experts.svg", "matrix.png", "matrix.svg", "over_time.png",
            "over_time.svg",
        ]  # fmt: skip
        drawn = f"figures, as PNG and SVG: matrix, over_time, experts in {folder}"
        assert result.notes[-1] == drawn
        assert str(folder / "matrix.png") in result.data["figures"]
        assert Run.open(pair, "small").state(Node("report")).status == "fresh"
