"""Per-question results as JSON lines: written as they come, resumable, complete or an error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clmoe.errors import ClmoeError


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered question.

    Attributes:
        question_id: The question's id in its source.
        task: The task it belongs to.
        kind: The source's question type, or None.
        question: The question as asked, suffix included.
        prediction: What the model answered.
        answer: The reference answer.
        answers: The human answers, where the source has several.
        predicted_task: The task that Eq 8 chose, or None where no index was used.
        prompt: First 12 hex digits of the sha256 of the prompt's token ids.
    """

    question_id: str
    task: str
    kind: str | None
    question: str
    prediction: str
    answer: str
    answers: tuple[str, ...]
    predicted_task: str | None
    prompt: str


class SampleFile:
    """A growing JSON-lines file of samples; a torn last line is dropped when it is reopened."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` and read what an interrupted evaluation left there."""
        self._path = path
        self._done: dict[str, Sample] = {}
        if path.exists():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                path.write_text(whole, encoding="utf-8")
            self._done = {sample.question_id: sample for sample in _parse(whole.splitlines())}

    @property
    def done(self) -> set[str]:
        """Ids of the questions that are answered."""
        return set(self._done)

    def append(self, samples: Iterable[Sample]) -> None:
        """Add samples and flush, so that a kill loses one batch at most."""
        new = list(samples)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(_line(sample) for sample in new)
            file.flush()
        self._done |= {sample.question_id: sample for sample in new}

    def finish(self, order: Sequence[str]) -> list[Sample]:
        """Rewrite the file in the data set's order and return its samples.

        Raises:
            ClmoeError: A question is missing, was answered twice, or was never asked.
        """
        if len(set(order)) != len(order):
            raise ClmoeError("the data set asks one question id twice: prepare it again")
        missing = [i for i in order if i not in self._done]
        extra = self._done.keys() - set(order)
        if missing or extra:
            raise ClmoeError(
                f"the evaluation is not complete: {len(missing)} questions are missing, "
                f"{len(extra)} were not asked",
                hint="run the same command again",
            )
        samples = [self._done[i] for i in order]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(_line(sample) for sample in samples), encoding="utf-8")
        partial.replace(self._path)
        return samples


def read_samples(path: Path) -> list[Sample]:
    """Read a complete file of samples."""
    return _parse(path.read_text(encoding="utf-8").splitlines())


def _line(sample: Sample) -> str:
    return json.dumps(asdict(sample), ensure_ascii=False, sort_keys=True) + "\n"


def _parse(lines: Iterable[str]) -> list[Sample]:
    samples = []
    for line in lines:
        fields: dict[str, Any] = json.loads(line)
        samples.append(Sample(**{**fields, "answers": tuple(fields["answers"])}))
    return samples
