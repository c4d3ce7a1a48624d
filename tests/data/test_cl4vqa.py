from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clmoe.data.prepared import read_examples
from clmoe.data.sources.coco import CocoImages
from clmoe.data.sources.vqa_v2 import SUFFIX
from clmoe.errors import DataError

KEYS: dict[str, Any] = {"source": "cl4vqa", "tasks": ["count"], "check_images": False}
NAME = "COCO_train2014_000000000009.jpg"


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def entry(number: int, *turns: list[dict[str, str]], **changes: Any) -> dict[str, Any]:
    several = turns or (turn(f"<image>\nHow many cats?\n{SUFFIX}", "2"),)
    return {
        "id": str(number),
        "image": f"COCO2014/train2014/COCO_train2014_{number:012d}.jpg",
        "conversations": [part for one in several for part in one],
    } | changes


def asked(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question_id": number,
        "image": f"COCO2014/val2014/COCO_val2014_{number:012d}.jpg",
        "text": f"How many dogs?\n{SUFFIX}",
        "answer": "1",
    } | changes


@pytest.fixture
def release(tmp_path: Path, dump: Callable[[Path, Any], Path]) -> Callable[..., Path]:
    def write(train: list[Any] | None = None, test: list[Any] | None = None) -> Path:
        root = tmp_path / "cl4vqa"
        if train is not None:
            dump(root / "train_q_count.json", train)
        if test is not None:
            dump(root / "test_q_count.json", test)
        return root

    return write


def test_every_turn_is_a_question_and_the_entry_is_its_group(
    prepare: Any, out: Path, release: Callable[..., Path]
) -> None:
    root = release(
        [
            entry(7, turn(f"<image>\nHow many cats?\n{SUFFIX}", "2"), turn("How many cups?", "3")),
            entry(8, turn(f"How many hats?\n{SUFFIX}\n<image>", " 0 ")),
        ]
    )
    prepare(**KEYS, root=root, splits="train")
    examples = read_examples(out, task="count", split="train")
    assert [(e.question_id, e.group, e.question, e.answer) for e in examples] == [
        ("7#0", "7", f"How many cats?\n{SUFFIX}", "2"),
        ("7#1", "7", f"How many cups?\n{SUFFIX}", "3"),
        ("8#0", "8", f"How many hats?\n{SUFFIX}", "0"),
    ]
    assert examples[0].image == examples[1].image == "train2014/COCO_train2014_000000000007.jpg"


def test_an_entry_without_id_is_named_by_its_position(
    prepare: Any, out: Path, release: Callable[..., Path]
) -> None:
    one, two = entry(1), entry(2)
    del one["id"], two["id"]
    prepare(**KEYS, root=release([one, two]), splits="train")
    examples = read_examples(out, task="count", split="train")
    assert [e.question_id for e in examples] == ["count-0#0", "count-1#0"]


def test_the_test_file_keeps_its_ids(prepare: Any, out: Path, release: Callable[..., Path]) -> None:
    prepare(**KEYS, root=release(test=[asked(42)]), splits="test")
    (example,) = read_examples(out, task="count", split="test")
    assert example.question_id == "42"
    assert example.question == f"How many dogs?\n{SUFFIX}"
    assert example.image == "val2014/COCO_val2014_000000000042.jpg"


def test_validation_is_cut_from_train_and_turns_stay_together(
    prepare: Any, out: Path, release: Callable[..., Path]
) -> None:
    train = [entry(n, turn("How many a?", "1"), turn("How many b?", "2")) for n in range(60)]
    prepare(**KEYS, root=release(train, [asked(1)]), val_fraction=0.3)
    groups = {
        split: [e.group for e in read_examples(out, task="count", split=split)]
        for split in ("train", "val")
    }
    assert set(groups["train"]).isdisjoint(groups["val"])
    assert len(groups["train"]) + len(groups["val"]) == 120
    assert all(groups["val"].count(group) == 2 for group in groups["val"])


@pytest.mark.parametrize("given", [f"COCO2014/train2014/{NAME}", f"train2014/{NAME}", NAME])
@pytest.mark.parametrize("there", [f"COCO2014/train2014/{NAME}", f"train2014/{NAME}", NAME])
def test_every_form_of_a_path_finds_the_picture_wherever_it_lies(
    tmp_path: Path, picture: Callable[..., Path], given: str, there: str
) -> None:
    picture(tmp_path / there)
    assert CocoImages(tmp_path).path(given) == there


@pytest.mark.parametrize("given", [f"COCO2014/train2014/{NAME}", f"train2014/{NAME}", NAME])
def test_an_absent_picture_has_its_official_path(tmp_path: Path, given: str) -> None:
    assert CocoImages(tmp_path).path(given) == f"train2014/{NAME}"


@pytest.mark.parametrize("given", ["other/x.png", f"../{NAME}", f"/train2014/{NAME}"])
def test_other_paths_are_left_as_they_are(tmp_path: Path, given: str) -> None:
    assert CocoImages(tmp_path).path(given) == given


def test_missing_files_are_all_listed(prepare: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(source="cl4vqa", root=tmp_path)
    assert len(caught.value.problems) == 20
    assert f"{tmp_path / 'test_q_judge.json'}: missing" in caught.value.problems


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (entry(1, image=3), "question 1: 'image' must be a string, is a number"),
        (
            entry(1, conversations=[]),
            "question 1: 'conversations' must be a list of human and gpt turns in pairs",
        ),
        (
            entry(1, conversations=turn("a", "b")[:1]),
            "question 1: 'conversations' must be a list of human and gpt turns in pairs",
        ),
        (
            entry(1, conversations=turn("a", "b")[::-1]),
            "question 1: turns 0 and 1 must be from human and gpt, are from gpt and human",
        ),
        (entry(1, turn("<image>\n", "2")), "question 1: the question of turn 0 is empty"),
        (entry(1, turn("How many?", "")), "question 1: 'value' is empty"),
        (entry(1, conversations=[1, 2]), "question 1: must be an object, is a number"),
        (
            entry(1, image="../x.jpg"),
            "question 1#0: image ../x.jpg leaves the image folder by '..'",
        ),
        (entry(2), "question 2#0: duplicate id in count/train"),
    ],
)
def test_a_bad_entry_is_reported_by_its_id(
    prepare: Any, release: Callable[..., Path], bad: Any, problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=release([entry(2), bad]), splits="train")
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (asked(1, answer=""), "question 1: 'answer' is empty"),
        (asked(1, text=None), "question 1: 'text' must be a string, is null"),
        (asked(2), "question 2: duplicate id in count/test"),
    ],
)
def test_a_bad_test_question_is_reported_by_its_id(
    prepare: Any, release: Callable[..., Path], bad: Any, problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=release(test=[asked(2), bad]), splits="test")
    assert caught.value.problems == (problem,)


def test_a_record_without_id_is_reported_by_its_place(
    prepare: Any, release: Callable[..., Path]
) -> None:
    root = release(test=[asked(2), ["x"]])
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=root, splits="test")
    path = root / "test_q_count.json"
    assert caught.value.problems == (f"{path}: [1]: must be an object, is a list",)
