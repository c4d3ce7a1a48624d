from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clmoe.data.prepared import read_examples
from clmoe.data.sources.vqa_v2 import SUFFIX
from clmoe.errors import DataError

KEYS: dict[str, Any] = {"source": "vqacl", "tasks": ["judge"], "check_images": False}


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "answer_type": "yes/no",
        "img_id": f"COCO_val2014_{number:012d}",
        "label": {"yes": 1.0, "no": 0.3},
        "question_id": number * 1000,
        "question_type": "is this a",
        "sent": "Is this a cat?",
        "answers": [
            {"answer": "yes", "answer_confidence": "yes", "answer_id": k} for k in range(10)
        ],
        "is_topk_optimal": True,
    } | changes


@pytest.fixture
def partition(tmp_path: Path, dump: Callable[[Path, Any], Path]) -> Callable[..., Path]:
    def write(**splits: list[Any]) -> Path:
        for split, records in splits.items():
            dump(tmp_path / "vqacl" / f"karpathy_{split}_q_judge.json", records)
        return tmp_path / "vqacl"

    return write


def test_the_three_files_are_the_three_splits(
    prepare: Any, out: Path, partition: Callable[..., Path]
) -> None:
    root = partition(train=[record(1), record(2)], val=[record(3)], test=[record(4)])
    summary = prepare(**KEYS, root=root)
    assert summary.source.counts == {"judge": {"train": 2, "val": 1, "test": 1}}
    (example,) = read_examples(out, task="judge", split="test")
    assert example.question_id == "4000"
    assert example.image == "val2014/COCO_val2014_000000000004.jpg"
    assert example.question == f"Is this a cat?\n{SUFFIX}"
    assert example.answer == "yes"
    assert example.answers == ("yes",) * 10
    assert example.kind == "is this a"


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"label": {}}, "yes"),
        ({"answers": ["no"] * 5 + ["yes"] * 5}, "yes"),
        ({"answers": ["a", "b", "b"]}, "b"),
        ({"answers": []}, "yes"),
        ({"answers": None, "label": {"cup": 0.3, "mug": 0.9}}, "mug"),
    ],
)
def test_the_ten_answers_count_before_the_label_which_may_be_empty(
    prepare: Any, out: Path, partition: Callable[..., Path], changes: Any, answer: str
) -> None:
    prepare(**KEYS, root=partition(test=[record(1, **changes)]), splits="test")
    (example,) = read_examples(out, task="judge", split="test")
    assert example.answer == answer


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (record(1, sent=""), "question 1000: 'sent' is empty"),
        (record(1, img_id=1), "question 1000: 'img_id' must be a string, is a number"),
        (record(1, answers=[], label={}), "question 1000: every answer is empty"),
        (
            record(1, label=["yes"]),
            "question 1000: 'label' must be an object of answers and scores",
        ),
        (
            record(1, label={"yes": "a"}),
            "question 1000: 'label' must be an object of answers and scores",
        ),
        (record(2), "question 2000: duplicate id in judge/test"),
    ],
)
def test_a_bad_record_is_reported_by_its_question_id(
    prepare: Any, partition: Callable[..., Path], bad: Any, problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=partition(test=[record(2), bad]), splits="test")
    assert caught.value.problems == (problem,)


def test_missing_files_are_all_listed(prepare: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=tmp_path)
    assert caught.value.problems == tuple(
        f"{tmp_path / f'karpathy_{split}_q_judge.json'}: missing"
        for split in ("train", "val", "test")
    )
