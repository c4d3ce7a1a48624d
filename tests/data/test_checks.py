from __future__ import annotations

import json
from pathlib import Path

import pytest

from clmoe.data.checks import Problems, did_you_mean, require_paths
from clmoe.errors import DataError


def test_nothing_is_raised_when_nothing_is_wrong() -> None:
    Problems().raise_if_any(limit=3, keep_going=False)


def test_the_first_problems_are_listed_and_all_are_counted() -> None:
    report = Problems()
    for number in range(25):
        report.add(f"question {number}", "the answer is empty")
    assert len(report) == 25
    with pytest.raises(DataError) as caught:
        report.raise_if_any(limit=20, keep_going=False)
    error = caught.value
    assert error.message == "25 problems in the data; the first 20 are listed"
    assert error.problems[0] == "question 0: the answer is empty"
    assert len(error.problems) == 20
    assert error.hint is not None
    assert "--keep-going" in error.hint
    assert error.exit_code == 4


def test_one_problem_is_singular() -> None:
    report = Problems()
    report.add("a.jsonl:3", "not valid JSON")
    with pytest.raises(DataError, match="^1 problem in the data$"):
        report.raise_if_any(limit=20, keep_going=False)


def test_keeping_going_passes_bad_records_but_not_a_lost_file() -> None:
    report = Problems()
    report.add("question 1", "the answer is empty")
    report.raise_if_any(limit=20, keep_going=True)
    report.add("a.json:1", "not valid JSON", fatal=True)
    with pytest.raises(DataError) as caught:
        report.raise_if_any(limit=20, keep_going=True)
    assert caught.value.problems == ("a.json:1: not valid JSON",)
    assert caught.value.hint is None


def test_rejected_records_are_one_json_object_a_line(tmp_path: Path) -> None:
    report = Problems()
    report.add("a.jsonl:1", "bad", record={"answer": "é"})
    report.add("question 2", "worse")
    report.write_rejected(tmp_path / "rejected.jsonl")
    lines = (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"where": "a.jsonl:1", "what": "bad", "record": {"answer": "é"}},
        {"where": "question 2", "what": "worse", "record": None},
    ]


def test_every_missing_path_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    paths = [tmp_path / name for name in "abc"]
    with pytest.raises(DataError) as caught:
        require_paths("jsonl", paths, expected="three files")
    assert caught.value.message == "2 of the 3 files and folders that jsonl needs are missing"
    assert caught.value.problems == (f"{paths[1]}: missing", f"{paths[2]}: missing")
    assert caught.value.hint == "three files"


def test_did_you_mean() -> None:
    assert did_you_mean("colour", ["color", "count"]) == " (did you mean color?)"
    assert did_you_mean("zebra", ["color", "count"]) == ""
