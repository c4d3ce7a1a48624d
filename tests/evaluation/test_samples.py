from __future__ import annotations

from pathlib import Path

import pytest

from clmoe.errors import ClmoeError
from clmoe.evaluation.samples import Sample, SampleFile, read_samples


def sample(number: int, prediction: str = "yes") -> Sample:
    return Sample(
        question_id=str(number),
        task="judge",
        kind=None,
        question="is it?",
        prediction=prediction,
        answer="yes",
        answers=("yes", "no"),
        predicted_task=None,
        prompt="abc",
    )


def test_interrupted_file_is_continued_and_ends_in_order(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    SampleFile(path).append([sample(2), sample(0)])
    with path.open("a") as file:
        file.write('{"question_id": "1", "ta')  # killed in the middle of a line
    again = SampleFile(path)
    assert again.done == {"0", "2"}
    again.append([sample(1, "naïve")])
    assert [s.question_id for s in again.finish(["0", "1", "2"])] == ["0", "1", "2"]
    assert read_samples(path)[1] == sample(1, "naïve")


def test_incomplete_or_foreign_answers_are_errors(tmp_path: Path) -> None:
    file = SampleFile(tmp_path / "samples.jsonl")
    file.append([sample(0)])
    with pytest.raises(ClmoeError, match="1 questions are missing"):
        file.finish(["0", "1"])
    with pytest.raises(ClmoeError, match="1 were not asked"):
        file.finish([])
    with pytest.raises(ClmoeError, match="one question id twice"):
        file.finish(["0", "0"])
