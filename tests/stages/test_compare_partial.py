"""Runs of which a part is stale or not done yet, in `clmoe compare` and `clmoe report`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from clmoe.errors import InputStageError, UsageError
from clmoe.events import Event, Note, subscribe
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.runs.study_record import StudyRecord, write_record
from clmoe.stages import pipeline
from clmoe.stages.result import Result
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def twice(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, the same with another beta, and the study `both` of the two."""
    runs = tmp_path_factory.mktemp("twice") / "runs"
    shutil.copytree(finished, runs, symlinks=True)
    pipeline.run(
        runs, recipe="shapes", overrides=[*SMALL, "eval.beta=0.9"], name="b", dry_run=False,
        keep_going=False,
    )  # fmt: skip
    write_record(runs, StudyRecord("both", "", "shapes", ("eval.beta",), {"small": {}, "b": {}}))
    return runs


@pytest.fixture
def folder(twice: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(twice, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def compared(runs: Path, *names: str, form: str | None = None) -> Result:
    return pipeline.compare(
        runs, names=names, baseline=None, scorer=None, paper="none", form=form, out=None,
        figures=None,
    )  # fmt: skip


def reported(runs: Path, name: str, **changes: Any) -> Result:
    return pipeline.report(runs, run=name, kind="all", overrides=[], **changes)


def make_stale(runs: Path, name: str) -> None:
    """Another gamma: from the second task on nothing is up to date."""
    Run.open(runs, name).set_overrides(["merge.gamma=0.9"])


def forget_row(runs: Path, name: str, after: str) -> None:
    """As if the row had never been evaluated."""
    path = Run.open(runs, name).files.current
    found = json.loads(path.read_text(encoding="utf-8"))
    cells = [label for label in found["current"] if f"-{after}/" in label]
    assert cells
    for label in cells:
        del found["current"][label]
    path.write_text(json.dumps(found), encoding="utf-8")


class TestStaleRows:
    """An earlier row never stands in silently for later ones that are out of date."""

    def test_a_named_run_is_refused(self, folder: Path) -> None:
        make_stale(folder, "small")
        with pytest.raises(InputStageError) as caught:
            compared(folder, "small", "b")
        assert str(caught.value) == (
            "small: rows 2 to 3 are stale (merge/02-location: merge.gamma 0.7 -> 0.9)"
        )
        assert caught.value.hint == "clmoe status --run small"

    def test_a_run_of_a_study_is_left_out(self, folder: Path) -> None:
        make_stale(folder, "small")
        result = compared(folder, "both")
        assert [group["runs"] for group in result.data["groups"]] == [["b"]]
        (note,) = (note for note in result.notes if note.startswith("left out"))
        assert note.startswith("left out small: rows 2 to 3 are stale (merge/02-location: ")

    def test_a_study_of_stale_runs_says_why_nothing_is_left(self, folder: Path) -> None:
        for name in ("small", "b"):
            make_stale(folder, name)
        with pytest.raises(InputStageError) as caught:
            compared(folder, "both")
        assert str(caught.value).startswith("no run of the study is finished: left out small: rows")

    def test_a_damaged_cell_is_no_earlier_row(self, folder: Path) -> None:
        run = Run.open(folder, "small")
        run.output(Node("eval", "count", after="count"), "samples").unlink()
        for task in ("recognition", "location"):
            run.output(Node("eval", task, after="count"), "samples").write_text("")
        with pytest.raises(InputStageError, match=r"^small: row 3 is damaged .eval/after-03-") as e:
            compared(folder, "small")
        assert e.value.hint == "clmoe status --run small"

    def test_a_run_without_any_row_says_why(self, folder: Path) -> None:
        Run.open(folder, "small").set_overrides(["train.lr=4e-3"])
        with pytest.raises(InputStageError) as caught:
            compared(folder, "small")
        assert str(caught.value) == (
            "small: no row of the accuracy matrix is up to date: rows 1 to 3 are stale "
            "(train/01-recognition: train.lr 5e-3 -> 4e-3)"
        )

    def test_the_report_goes_on_with_what_is_fresh(self, folder: Path) -> None:
        make_stale(folder, "small")
        result = reported(folder, "small")
        assert result.data["after"] == 1
        assert "rows 2 to 3 are stale: `clmoe status --run small` says why" in result.notes

    def test_one_stale_row_of_a_report(self, folder: Path) -> None:
        forget_row(folder, "small", "count")
        make_stale(folder, "small")
        assert "row 2 is stale: `clmoe status --run small` says why" in (
            reported(folder, "small").notes
        )

    def test_a_whole_run_has_no_such_note(self, twice: Path) -> None:
        assert not any("stale" in note for note in reported(twice, "b").notes)


class TestBehind:
    """One run that stopped halfway does not spoil its study."""

    def test_it_is_left_out_of_its_study(self, folder: Path) -> None:
        forget_row(folder, "small", "count")
        result = compared(folder, "both")
        assert [group["runs"] for group in result.data["groups"]] == [["b"]]
        assert "left out small: stands after 2 of 3 tasks" in result.notes

    def test_a_printed_file_leaves_the_note_to_standard_error(self, folder: Path) -> None:
        forget_row(folder, "small", "count")
        seen: list[Event] = []
        with subscribe(seen.append):
            result = compared(folder, "both", form="csv")
        (text,) = result.notes
        assert "left out" not in text
        assert Note("left out small: stands after 2 of 3 tasks") in seen

    def test_a_named_run_is_refused(self, folder: Path) -> None:
        forget_row(folder, "small", "count")
        with pytest.raises(UsageError, match="b stands after 3 of 3 tasks .exact., small after 2"):
            compared(folder, "b", "small")

    def test_a_study_may_stand_at_an_earlier_row_as_a_whole(self, folder: Path) -> None:
        for name in ("small", "b"):
            forget_row(folder, name, "count")
        result = compared(folder, "both")
        assert (result.data["after"], len(result.data["groups"])) == (2, 2)
