from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clmoe.data.example import Example, most_frequent_answer
from clmoe.data.prepared import read_examples
from clmoe.data.sources.vqa_v2 import SUFFIX, coco_image
from clmoe.errors import DataError, UsageError
from clmoe.events import Event, Note, subscribe

Change = dict[str, Any]
DELETE = object()


def question(number: int, text: str = "What is this?", **changes: Any) -> Change:
    return {"image_id": number // 1000, "question": text, "question_id": number} | changes


def annotation(number: int, kind: str = "what is this", **changes: Any) -> Change:
    ten = [{"answer": "cat", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    record = {
        "question_type": kind,
        "multiple_choice_answer": "cat",
        "answers": ten,
        "image_id": number // 1000,
        "answer_type": "other",
        "question_id": number,
    } | changes
    return {key: value for key, value in record.items() if value is not DELETE}


@pytest.fixture
def official(tmp_path: Path, dump: Callable[[Path, Any], Path]) -> Callable[..., Path]:
    """Write the two official files of one half."""

    def write(half: str, questions: list[Any], annotations: list[Any]) -> Path:
        root = tmp_path / "vqa"
        head = {"info": {}, "license": {}, "data_subtype": f"{half}2014"}
        dump(
            root / f"v2_OpenEnded_mscoco_{half}2014_questions.json",
            head | {"questions": questions},
        )
        dump(root / f"v2_mscoco_{half}2014_annotations.json", head | {"annotations": annotations})
        return root

    return write


@pytest.fixture
def both(official: Callable[..., Path]) -> Path:
    """Forty training images and four test images, two questions each."""
    for half, images in (("train", range(1, 41)), ("val", range(101, 105))):
        numbers = [image * 1000 + k for image in images for k in (0, 1)]
        root = official(half, [question(n) for n in numbers], [annotation(n) for n in numbers])
    return root


KEYS: dict[str, Any] = {
    "source": "vqa_v2",
    "tasks": ["recognition"],
    "check_images": False,
}


def test_the_sample_gives_200_real_test_questions_of_each_task(
    prepare: Any, out: Path, shared_data: Path
) -> None:
    tasks = ("location", "commonsense", "count", "action")
    root = shared_data / "vqa_v2_sample"
    summary = prepare(
        source="vqa_v2", root=root, splits="test", check_images=False, tasks=",".join(tasks)
    )
    assert summary.source.counts == {task: {"test": 200} for task in tasks}
    assert summary.source.image_root == root
    examples = read_examples(out, task="count", split="test")
    assert all(len(example.answers) == 10 for example in examples)
    assert all(example.question.endswith(f"\n{SUFFIX}") for example in examples)
    assert all(
        example.kind in ("what number is",) or "how many" in str(example.kind)
        for example in examples
    )


def test_tasks_the_data_lacks_are_an_error_that_names_them_all(
    prepare: Any, shared_data: Path
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(
            source="vqa_v2",
            root=shared_data / "vqa_v2_sample",
            splits="test",
            check_images=False,
        )
    assert "recognition/test: no questions" in caught.value.problems
    assert len(caught.value.problems) == 6
    assert "data.tasks=location,commonsense,count,action" in str(caught.value.hint)


def test_without_the_split_file_test_is_val2014_and_val_is_cut_from_train_by_image(
    prepare: Any, out: Path, both: Path
) -> None:
    events: list[Event] = []
    with subscribe(events.append):
        prepare(**KEYS, root=both, val_fraction=0.2)
    assert any(isinstance(e, Note) and "val is cut from train" in e.text for e in events)
    train, val, test = (
        read_examples(out, task="recognition", split=split) for split in ("train", "val", "test")
    )
    assert {e.image for e in train}.isdisjoint({e.image for e in val})
    assert len(train) + len(val) == 80
    assert 4 <= len(val) <= 32
    assert {e.split for e in val} == {"val"}
    assert {e.image for e in test} == {coco_image("val", image) for image in range(101, 105)}
    assert train[0].image.startswith("train2014/COCO_train2014_0000000")


def test_the_karpathy_split_moves_restval_images_to_train(
    prepare: Any, out: Path, both: Path, dump: Callable[[Path, Any], Path]
) -> None:
    def entry(image: int, split: str, half: str) -> Change:
        sentence = {"tokens": ["a", "cat"], "raw": "A cat.", "imgid": image, "sentid": 1}
        return {
            "filepath": f"{half}2014",
            "filename": f"COCO_{half}2014_{image:012d}.jpg",
            "cocoid": image,
            "split": split,
            "sentences": [sentence],
        }

    images = [entry(image, "train", "train") for image in range(1, 41)]
    splits = ("restval", "val", "test", "test")
    images += [entry(101 + k, split, "val") for k, split in enumerate(splits)]
    dump(both / "dataset_coco.json", {"images": images, "dataset": "coco"})
    summary = prepare(**KEYS, root=both)
    assert summary.source.counts == {"recognition": {"train": 82, "val": 2, "test": 4}}
    train = read_examples(out, task="recognition", split="train")
    assert coco_image("val", 101) in {e.image for e in train}


def test_an_image_absent_from_the_split_file_is_reported(
    prepare: Any, both: Path, dump: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    path = dump(tmp_path / "k.json", {"images": [{"cocoid": 101, "split": "test"}]})
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=both, splits="test", karpathy=path)
    assert "question 102000: image 102 is not in the split file" in caught.value.problems


def test_missing_files_are_all_listed_with_the_official_names(prepare: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(source="vqa_v2", root=tmp_path)
    assert caught.value.exit_code == 4
    assert len(caught.value.problems) == 6
    names = " ".join(caught.value.problems)
    assert "v2_OpenEnded_mscoco_train2014_questions.json: missing" in names
    assert "v2_mscoco_val2014_annotations.json: missing" in names
    assert f"{tmp_path / 'train2014'}: missing" in names
    assert "dataset_coco.json" in str(caught.value.hint)


def test_a_split_file_that_was_asked_for_must_exist(
    prepare: Any, both: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=both, karpathy=tmp_path / "no.json")
    assert caught.value.problems == (f"{tmp_path / 'no.json'}: missing",)


def test_without_data_root_the_command_is_shown(prepare: Any) -> None:
    with pytest.raises(UsageError) as caught:
        prepare(source="vqa_v2")
    assert caught.value.hint == "clmoe prepare --source vqa_v2 data.root=DIR"


def test_an_unknown_task_gets_a_suggestion(prepare: Any, both: Path) -> None:
    with pytest.raises(UsageError, match=r"no task 'colour' \(did you mean color\?\)"):
        prepare(**(KEYS | {"tasks": ["colour"]}), root=both)


def test_questions_of_type_how_are_counted_and_left_out(
    prepare: Any, official: Callable[..., Path]
) -> None:
    root = official(
        "val",
        [question(1000), question(2000, "How is it?")],
        [annotation(1000), annotation(2000, "how")],
    )
    summary = prepare(**KEYS, root=root, splits="test")
    assert summary.source.counts == {"recognition": {"test": 1}}
    assert summary.source.statistics["source"] == {"questions_in_no_task": {"how": 1}}


def one(prepare: Any, out: Path, root: Path) -> Example:
    prepare(**KEYS, root=root, splits="test")
    (example,) = read_examples(out, task="recognition", split="test")
    return example


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["no"] * 5 + ["yes"] * 5, "yes"),
        (["yes"] * 4 + ["no"] * 6, "no"),
        (["dog"] * 2 + ["cat"] * 3 + ["cow"] * 3, "cat"),
        (["", "", "dog"], "dog"),
    ],
)
def test_an_absent_single_answer_is_the_most_frequent_of_the_ten(
    prepare: Any, out: Path, official: Callable[..., Path], given: list[str], expected: str
) -> None:
    ten = [{"answer": a, "answer_confidence": "maybe", "answer_id": 1} for a in given]
    root = official(
        "val",
        [question(1000)],
        [annotation(1000, multiple_choice_answer=DELETE, answers=ten)],
    )
    example = one(prepare, out, root)
    assert example.answer == expected == most_frequent_answer(given)
    assert example.answers == tuple(given)


def test_an_absent_type_is_found_from_the_question(
    prepare: Any, out: Path, official: Callable[..., Path]
) -> None:
    root = official("val", [question(1000)], [annotation(1000, question_type=DELETE)])
    assert one(prepare, out, root).kind == "what is this"


BAD = [
    (
        question(1000, 5),
        annotation(1000),
        "question 1000: 'question' must be a string, is a number",
    ),
    (
        question(1000, "\ud800?"),
        annotation(1000),
        "question 1000: 'question' is not Unicode text: '\\ud800?'",
    ),
    (question(1000, " "), annotation(1000), "question 1000: 'question' is empty"),
    (
        question(1000),
        annotation(1000, multiple_choice_answer=""),
        "question 1000: 'multiple_choice_answer' is empty",
    ),
    (
        question(1000),
        annotation(1000, multiple_choice_answer=DELETE, answers=[]),
        "question 1000: every answer is empty",
    ),
    (
        question(1000),
        annotation(1000, answers="cat"),
        "question 1000: 'answers' must be a list, is a string",
    ),
    (
        question(1000),
        annotation(1000, answers=[{"answer": 3, "answer_id": 1}]),
        "question 1000: 'answers' must hold strings or objects with a string 'answer'",
    ),
    (
        question(1000),
        annotation(1000, "what is thus"),
        "question 1000: unknown question_type 'what is thus' (did you mean what is this?)",
    ),
    (
        question(1000),
        annotation(1000, 7),
        "question 1000: 'question_type' must be a string, is a number",
    ),
    (
        question(1000),
        annotation(1000, image_id=2),
        "question 1000: is about image 1, its annotation about 2",
    ),
    (
        question(1000, image_id=None),
        annotation(1000),
        "question 1000: 'image_id' must be an integer, is null",
    ),
    (
        question(1000),
        annotation(3000),
        "question 1000: has no annotation in v2_mscoco_val2014_annotations.json",
    ),
]


@pytest.mark.parametrize(("asked", "answered", "problem"), BAD)
def test_a_bad_record_is_reported_by_its_question_id(
    prepare: Any, official: Callable[..., Path], asked: Change, answered: Change, problem: str
) -> None:
    root = official("val", [asked, question(9000)], [answered, annotation(9000)])
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=root, splits="test")
    assert caught.value.problems == (problem,)


def test_records_without_an_id_are_reported_by_file_and_position(
    prepare: Any, official: Callable[..., Path]
) -> None:
    root = official(
        "val", [question(1000, question_id="a"), 5], [annotation(1000, question_id=True), "x"]
    )
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=root, splits="test")
    annotations = root / "v2_mscoco_val2014_annotations.json"
    questions = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    assert caught.value.problems == (
        f"{annotations}: annotations[0]: 'question_id' must be an integer, is a boolean",
        f"{annotations}: annotations[1]: must be an object, is a string",
        f"{questions}: questions[0]: 'question_id' must be an integer, is a string",
        f"{questions}: questions[1]: must be an object, is a number",
    )


def test_duplicate_ids_are_reported_in_questions_and_annotations(
    prepare: Any, official: Callable[..., Path]
) -> None:
    root = official("val", [question(1000), question(1000)], [annotation(1000), annotation(1000)])
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=root, splits="test")
    assert caught.value.problems == (
        "question 1000: has two annotations",
        "question 1000: duplicate id in recognition/test",
    )


def test_a_syntax_error_has_file_line_and_column_and_stops_even_when_keeping_going(
    prepare: Any, official: Callable[..., Path]
) -> None:
    root = official("val", [], [])
    path = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text('{"questions": [\n  {"question_id": 1,}\n]}')
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=root, splits="test", keep_going=True)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:2: not valid JSON: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "must hold an object with 'questions', holds a list"),
        ('{"questions": {}}', "'questions' must be a list, is an object"),
        ("{}", "'questions' must be a list, is null"),
    ],
)
def test_another_layout_is_refused(
    prepare: Any, official: Callable[..., Path], content: str, problem: str
) -> None:
    root = official("val", [], [])
    path = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=root, splits="test")
    assert caught.value.problems == (f"{path}: {problem}",)


def test_images_are_found_under_their_official_names(
    prepare: Any, tmp_path: Path, official: Callable[..., Path], picture: Callable[..., Path]
) -> None:
    root = official("val", [question(1000), question(2000)], [annotation(1000), annotation(2000)])
    picture(tmp_path / "coco" / "val2014" / "COCO_val2014_000000000001.jpg")
    keys = KEYS | {"check_images": True, "images": tmp_path / "coco"}
    with pytest.raises(DataError) as caught:
        prepare(**keys, root=root, splits="test")
    (problem,) = caught.value.problems
    assert problem.startswith(
        "question 2000: image val2014/COCO_val2014_000000000002.jpg is missing from"
    )
