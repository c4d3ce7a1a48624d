"""A study of real runs on the tiny base: what is shared, counted, skipped, recorded, estimated."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clmoe.errors import InputStageError, UsageError
from clmoe.events import Event, Note, StageFinished, subscribe
from clmoe.recipe.study_cells import random_orders
from clmoe.runs.run import Run
from clmoe.runs.study_record import study_runs
from clmoe.stages import pipeline
from clmoe.stages.result import Result
from clmoe.stages.study import StudyError
from clmoe.stages.study_estimate import spent
from tests.conftest import SMALL

TINY = (*SMALL, "data.train_per_task=32", "data.test_per_task=8")
FOUR = """
# Four methods of one learning rate.
name: four
recipe: shapes
runs:
  - method.name: clmoe
  - method.name: mmoe
  - method.name: rmoe
  - {name: moelora, merge.rule: none, eval.beta: 1.0, adapter.experts: 8}
"""
NAMES = ["four-clmoe", "four-mmoe", "four-rmoe", "four-moelora"]


def write(folder: Path, text: str = FOUR) -> str:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def study(runs: Path, source: str, *overrides: str, **options: Any) -> Result:
    chosen = {"dry_run": False, "print_commands": False, "jobs": 1} | options
    return pipeline.study(runs, source=source, overrides=[*TINY, *overrides], **chosen)


def dry(runs: Path, source: str, *overrides: str, jobs: int = 1) -> Result:
    return study(runs, source, *overrides, dry_run=True, jobs=jobs)


def trained(runs: Path) -> int:
    return len(list((runs / ".store" / "train").glob("[!.]*")))


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the finished study ``four``."""
    folder = tmp_path_factory.mktemp("study")
    result = study(folder / "runs", write(folder))
    assert [run["state"] for run in result.data["runs"]] == ["done"] * 4
    return folder / "runs"


@pytest.fixture
def runs(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(finished_study, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


def test_four_methods_over_three_tasks_train_four_times(finished_study: Path) -> None:
    """1 + 1 + 2 x 1: tasks 1 and 2 are everybody's, task 3 is one for each family."""
    assert trained(finished_study) == 4
    assert Run.open(finished_study).layout.run_names() == sorted(NAMES)
    for name in NAMES:
        states = Run.open(finished_study, name).states()
        assert {state.status for state in states} == {"fresh"}


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_is_an_ordinary_run(runs: Path, name: str) -> None:
    result = pipeline.report(runs, run=name, kind="all", overrides=[])
    assert result.outcomes[0].status == "skipped"


def test_the_record_says_what_varies(finished_study: Path) -> None:
    plain = {"merge.rule": "roles", "eval.beta": 0.5, "adapter.experts": 8}
    assert study_runs(finished_study, "four") == [
        ("four-clmoe", {"method.name": "clmoe", **plain}),
        ("four-mmoe", {"method.name": "mmoe", **plain, "eval.beta": 1.0}),
        ("four-rmoe", {"method.name": "rmoe", **plain, "merge.rule": "none"}),
        (
            "four-moelora",
            {
                "method.name": "clmoe", "merge.rule": "none", "eval.beta": 1.0,
                "adapter.experts": 8, "name": "moelora",
            },
        ),
    ]  # fmt: skip


def test_dry_run_counts_before_anything_is_done(tmp_path: Path) -> None:
    result = dry(tmp_path / "runs", write(tmp_path))
    assert result.data["trainings"] == {"all": 12, "distinct": 4, "stored": 0, "to_do": 4}
    assert [run["new"] for run in result.data["runs"]] == [3, 0, 1, 0]
    assert result.notes == (
        "4 runs, 0 finished",
        "12 trainings, 4 of them different, 0 in the store: 4 to do",
        "time: unknown until one training was done",
    )
    assert not (tmp_path / "runs").exists()


def test_dry_run_counts_what_the_store_has(runs: Path, tmp_path: Path) -> None:
    result = dry(runs, write(tmp_path))
    assert result.data["trainings"] == {"all": 12, "distinct": 4, "stored": 4, "to_do": 0}
    assert result.notes[0] == "4 runs, 4 finished"
    assert result.notes[2] == "time: nothing is left to compute"
    half = FOUR.replace("name: four", "name: half").replace("[clmoe]", "[rmoe]")
    result = dry(runs, write(tmp_path, half + "seeds: [0, 1]\n"), jobs=2)
    assert result.data["trainings"] == {"all": 24, "distinct": 8, "stored": 4, "to_do": 4}
    assert [run["new"] for run in result.data["runs"]] == [0, 0, 0, 0, 3, 0, 1, 0]


def test_a_sweep_of_beta_trains_nothing_new(runs: Path, tmp_path: Path) -> None:
    sweep = "name: beta\nrecipe: shapes\ngrid: {eval.beta: [0.1, 0.3]}\n"
    result = dry(runs, write(tmp_path, sweep))
    assert result.data["trainings"] == {"all": 6, "distinct": 3, "stored": 3, "to_do": 0}
    seen: list[Event] = []
    with subscribe(seen.append):
        study(runs, write(tmp_path, sweep))
    done = {event.stage for event in seen if isinstance(event, StageFinished)}
    assert done == {"eval", "report"}
    assert trained(runs) == 4


def test_the_estimate_is_the_measured_time_of_the_same_work(runs: Path, tmp_path: Path) -> None:
    """Another seed costs what the first one took; twice the epochs cost twice the training."""
    measured = [
        json.loads(path.read_text())["seconds"]
        for path in (runs / ".store" / "train").glob("[!.]*/manifest.json")
    ]
    result = dry(runs, write(tmp_path, "name: x\nrecipe: shapes\nseeds: [1]\n"))
    expected = 3 * sum(measured) / 4
    assert result.data["seconds"]["training"] == pytest.approx(expected)
    assert result.data["seconds"]["others"] > 0
    text = "name: x\nrecipe: shapes\nseeds: [1]\noverrides: {train.epochs: 2}\n"
    result = dry(runs, write(tmp_path, text))
    assert result.data["seconds"]["training"] == pytest.approx(2 * expected)
    more = dry(runs, write(tmp_path, text), "data.train_per_task=640")
    assert more.data["seconds"]["training"] == pytest.approx(2 * 20 * expected)
    two = dry(runs, write(tmp_path, text), jobs=2)
    assert "at best" in two.notes[2]
    assert str(two.next_command).endswith(f"{TINY[-1]} --jobs 2")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5400, "1 h 30 min")]
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert spent(seconds) == text


def test_finished_runs_are_skipped_without_a_process(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(pipeline, "run", None)
    for jobs in (1, 2):
        started = time.monotonic()
        result = study(runs, write(tmp_path), jobs=jobs)
        assert [run["state"] for run in result.data["runs"]] == ["skipped"] * 4
        assert time.monotonic() - started < 10
    assert result.next_command == "clmoe compare four"
    assert result.data["runs"][0]["metrics"]["AP"] is not None


def test_bare_commands_keep_their_run(runs: Path, tmp_path: Path) -> None:
    pipeline.use(runs, "four-rmoe")
    (runs / "four-mmoe" / "current.json").unlink()
    result = study(runs, write(tmp_path))
    assert [run["state"] for run in result.data["runs"]] == ["skipped", "done", *["skipped"] * 2]
    assert Run.open(runs).name == "four-rmoe"
    assert trained(runs) == 4


def test_a_run_of_another_purpose_is_not_given_a_recipe(runs: Path, tmp_path: Path) -> None:
    other = FOUR.replace("name: four\n", "name: four-clmoe\n") + "seeds: [0]\n"
    assert not study(runs, write(tmp_path, other), dry_run=True).outcomes
    shutil.rmtree(runs / ".studies")
    study(runs, write(tmp_path), dry_run=True)  # the same recipes: they can only be the study's
    with pytest.raises(UsageError) as failure:
        study(runs, write(tmp_path), "train.epochs=2", dry_run=True)
    assert "four-clmoe, four-mmoe" in str(failure.value)
    assert failure.value.hint == "give the study another name"


def test_a_failing_run_does_not_stop_the_others(runs: Path, tmp_path: Path) -> None:
    bad = "name: fails\nrecipe: shapes\nruns: [{name: bad, base.model: nowhere}, {name: good}]\n"
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(StudyError) as failure:
        study(runs, write(tmp_path, bad))
    assert failure.value.exit_code == 1
    assert str(failure.value) == "1 of 2 runs of the study fails failed; 1 are done"
    assert len(failure.value.problems) == 1
    assert failure.value.problems[0].startswith("fails-bad: ")
    log = runs / ".studies" / "fails" / "logs" / "fails-bad.log"
    assert str(log) in failure.value.problems[0]
    assert "Traceback" in log.read_text()
    assert {s.status for s in Run.open(runs, "fails-good").states()} == {"fresh"}


def test_orders_of_tasks_that_only_the_data_tells(tmp_path: Path) -> None:
    """Looking needs prepared data; doing prepares it first (here no run can load its base)."""
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "one.png")
    rows = [
        {"task": task, "split": split, "image": "one.png", "question": f"{task}?", "answer": "yes"}
        for task in ("x", "y", "z")
        for split in ("train", "val", "test")
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "questions.jsonl").write_text(lines, encoding="utf-8")
    text = """
name: own
recipe: shapes
overrides: {data.source: jsonl, data.root: ., data.images: images, base.model: nowhere}
orders: {random: 2}
"""
    runs, source = tmp_path / "runs", write(tmp_path, text)
    options = {"source": source, "overrides": [], "print_commands": False, "jobs": 1}
    with pytest.raises(InputStageError) as failure:
        pipeline.study(runs, dry_run=True, **options)
    assert "only the data of jsonl tells which tasks there are" in str(failure.value)
    with pytest.raises(StudyError, match="4 of 4 runs"):
        pipeline.study(runs, dry_run=False, **options)
    found = [values["protocol.order"] for _, values in study_runs(runs, "own")]
    assert found[:2] == ["forward", "reverse"]
    assert [tuple(order) for order in found[2:]] == random_orders("xyz", count=2, seed=0)
    counted = pipeline.study(runs, dry_run=True, **options)
    assert counted.data["trainings"]["to_do"] > 0


def test_the_commands_give_the_same_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    result = study(runs, write(tmp_path, FOUR + "orders: {random: 1}\n"), print_commands=True)
    assert len(result.notes) == 12
    assert result.next_command is None
    for line, (name, values) in zip(result.notes, study_runs(runs, "four"), strict=True):
        words = shlex.split(line)
        assert words[:5] == ["clmoe", "run", "shapes", "--name", name]
        planned = pipeline.run(
            runs, recipe="shapes", overrides=words[5:], name=name, dry_run=True, keep_going=False
        )
        assert len(planned.data["plan"]) > 10
        assert f"protocol.order={values['protocol.order']}".replace("'", "") in words


@pytest.mark.slow
def test_two_processes_at_once_make_the_same_trainings(
    finished_study: Path, tmp_path: Path
) -> None:
    """The real command: both families at once, one run that fails, and a second call."""
    text = """
name: four
recipe: shapes
runs: [{name: bad, base.model: nowhere}, {method.name: clmoe}, {method.name: rmoe}]
"""
    (tmp_path / "nowhere").mkdir()
    arguments = ["study", write(tmp_path, text), *TINY, "--jobs", "2", "--json"]
    command = [sys.executable, "-m", "clmoe_cli", "--runs", "runs", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 1, ran.stderr
    (problem,) = json.loads(ran.stdout)["problems"]
    assert problem.startswith("four-bad: ")
    assert "four-rmoe: done in" in ran.stderr
    assert "warning: four-bad: failed: " in ran.stderr
    ours, theirs = (
        {path.name for path in (folder / ".store" / "train").glob("[!.]*")}
        for folder in (finished_study, tmp_path / "runs")
    )
    assert ours == theirs
    good = text.replace("{name: bad, base.model: nowhere}, ", "")
    seen: list[Event] = []
    with subscribe(seen.append):
        study(tmp_path / "runs", write(tmp_path, good), jobs=2)
    assert "skipped 2 of 2 runs: they are finished" in [
        event.text for event in seen if isinstance(event, Note)
    ]
