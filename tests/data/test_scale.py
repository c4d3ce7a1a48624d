"""The whole of VQA v2, in the official format, prepares quickly and in little memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clmoe.data.question_types import load_question_types

SIZES = {"train": 443_757, "val": 214_354}
SECONDS = 90
"""Of processor time: the time it takes on a machine that is doing nothing else."""
BYTES = 4_000_000_000
QUESTIONS_PER_IMAGE = 5

PREPARE = """
import json, resource, sys, time
from pathlib import Path
from clmoe.data.prepare import prepare_data
from clmoe.recipe.schema import Data

root, out = Path(sys.argv[1]), Path(sys.argv[2])
start = time.process_time()
summary = prepare_data(
    Data(source="vqa_v2", root=root, check_images=False), workspace=out, out=out
)
print(json.dumps({
    "seconds": time.process_time() - start,
    "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "questions": sum(sum(splits.values()) for splits in summary.source.counts.values()),
    "excluded": sum(summary.source.statistics["source"]["questions_in_no_task"].values()),
}))
"""


def write_official_files(root: Path, sizes: dict[str, int]) -> None:
    """Write question and annotation files as large as VQA v2's, ten answers a question."""
    generator = random.Random(0)
    words = [f"word{number}" for number in range(3000)]
    answers = [_answers_json(generator.choices(words, k=3)) for _ in range(2000)]
    kinds = list(load_question_types().tasks)
    for half, size in sizes.items():
        head = f'{{"info": {{"version": "2.0"}}, "data_subtype": "{half}2014", '
        with (root / f"v2_OpenEnded_mscoco_{half}2014_questions.json").open("w") as file:
            file.write(head + '"questions": [')
            file.writelines(_commas(_questions(size, kinds)))
            file.write("]}")
        with (root / f"v2_mscoco_{half}2014_annotations.json").open("w") as file:
            file.write(head + '"annotations": [')
            file.writelines(_commas(_annotations(size, kinds, answers)))
            file.write("]}")


def _commas(records: Iterator[str]) -> Iterator[str]:
    yield next(records)
    for record in records:
        yield ", " + record


def _ids(number: int) -> tuple[int, int]:
    image = 1 + number // QUESTIONS_PER_IMAGE
    return image, image * 1000 + number % QUESTIONS_PER_IMAGE


def _questions(size: int, kinds: list[str]) -> Iterator[str]:
    for number in range(size):
        image, question = _ids(number)
        text = f"{kinds[number % len(kinds)]} next to the thing with number {number}?"
        yield f'{{"image_id": {image}, "question": "{text}", "question_id": {question}}}'


def _annotations(size: int, kinds: list[str], answers: list[tuple[str, str]]) -> Iterator[str]:
    for number in range(size):
        image, question = _ids(number)
        best, ten = answers[number % len(answers)]
        yield (
            f'{{"question_type": "{kinds[number % len(kinds)]}", "multiple_choice_answer": '
            f'"{best}", "answers": {ten}, "image_id": {image}, "answer_type": "other", '
            f'"question_id": {question}}}'
        )


def _answers_json(words: list[str]) -> tuple[str, str]:
    given = [words[0]] * 6 + [words[1]] * 3 + [words[2]]
    ten = [
        {"answer": word, "answer_confidence": "yes", "answer_id": number}
        for number, word in enumerate(given, start=1)
    ]
    return words[0], json.dumps(ten)


@pytest.mark.slow
def test_658_000_questions_prepare_in_time_and_memory(tmp_path: Path) -> None:
    write_official_files(tmp_path, SIZES)
    finished = subprocess.run(
        [sys.executable, "-c", PREPARE, str(tmp_path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    measured = json.loads(finished.stdout)
    assert measured["questions"] + measured["excluded"] == sum(SIZES.values())
    assert measured["excluded"] > 0
    assert measured["seconds"] < SECONDS
    assert measured["bytes"] < BYTES
