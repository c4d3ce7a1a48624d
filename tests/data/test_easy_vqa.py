from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clmoe.data.prepared import read_examples
from clmoe.data.sources.easy_vqa import TASKS, task_of
from clmoe.errors import DataError


@pytest.mark.parametrize(
    ("question", "task"),
    [
        ("what shape is in the image?", "shape"),
        ("what shape does the image contain?", "shape"),
        ("what is the red shape?", "shape"),
        ("what color is the shape?", "color"),
        ("what is the color of the triangle?", "color"),
        ("is there a circle?", "has_shape"),
        ("does the image contain a rectangle?", "has_shape"),
        ("is a blue shape present?", "has_color"),
        ("is no circle present?", "no_shape"),
        ("is there not a triangle in the image?", "no_shape"),
        ("does the image not contain a gray shape?", "no_color"),
        ("is no teal shape present?", "no_color"),
        ("is there a dog?", None),
        ("what is it?", None),
    ],
)
def test_the_task_of_each_form_of_question(question: str, task: str | None) -> None:
    assert task_of(question) == task


def test_the_real_set_has_2400_and_600_balanced_questions_of_each_task(
    prepare: Any, out: Path, shared_data: Path
) -> None:
    summary = prepare(
        source="easy_vqa",
        root=shared_data / "easy_vqa",
        splits="train,test",
        train_per_task=2400,
        test_per_task=600,
        balance_answers=True,
        check_images=False,
    )
    assert summary.source.tasks == TASKS
    assert summary.source.counts == {task: {"train": 2400, "test": 600} for task in TASKS}
    for task in TASKS:
        for split, size in (("train", 2400), ("test", 600)):
            examples = read_examples(out, task=task, split=split)
            counts = Counter(e.answer for e in examples)
            assert set(counts.values()) == {size // len(counts)}
            assert not any("\n" in e.question for e in examples)


def test_real_pictures_are_in_place_and_no_test_image_is_trained_on(
    prepare: Any, shared_data: Path
) -> None:
    summary = prepare(
        source="easy_vqa",
        root=shared_data / "easy_vqa",
        train_per_task=40,
        val_per_task=20,
        test_per_task=40,
    )
    leakage = summary.source.statistics["leakage"]
    assert leakage["test_images_in_train"] == leakage["test_images_in_val"] == 0
    assert summary.source.splits == ("train", "val", "test")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (["is there a dog?", "no", 0], "'is there a dog?' fits none of the tasks"),
        (["is there a circle?", "", 0], "the answer is empty"),
        (["is there a circle?", None, 0], "the answer must be a string, is null"),
        (["is there a circle?", "no", "0"], "the image id must be an integer, is a string"),
        (["is there a circle?", "no"], "must be a list of question, answer and image id"),
    ],
)
def test_a_bad_entry_is_reported_by_its_place(
    prepare: Any, tmp_path: Path, dump: Callable[[Path, Any], Path], bad: Any, problem: str
) -> None:
    path = dump(
        tmp_path / "easy" / "test" / "questions.json", [["is there a circle?", "no", 0], bad]
    )
    with pytest.raises(DataError) as caught:
        prepare(source="easy_vqa", root=tmp_path / "easy", splits="test", check_images=False)
    (reported,) = caught.value.problems
    assert reported.startswith(f"{path}: [1]: {problem}")


def test_missing_files_are_all_listed(prepare: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(source="easy_vqa", root=tmp_path)
    assert len(caught.value.problems) == 4
