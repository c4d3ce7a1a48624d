from __future__ import annotations

import json
from pathlib import Path

import pytest

from clmoe.data.question_types import load_question_types
from clmoe.errors import DataError

TYPES = load_question_types()


def test_the_shipped_map_has_65_types_and_ten_tasks() -> None:
    assert len(TYPES.tasks) == 65
    assert set(TYPES.tasks.values()) - {None} == set(TYPES.order)
    assert TYPES.order[0] == "recognition"
    assert TYPES.order[-1] == "causal"


@pytest.mark.parametrize(
    ("question", "kind", "task"),
    [
        ("What is this?", "what is this", "recognition"),
        ("Where are the cups?", "where are the", "location"),
        ("Is this a dog?", "is this a", "judge"),
        ("Does the cat sleep?", "does the", "commonsense"),
        ("How many people are in the room?", "how many people are in", "count"),
        ("What is the man doing?", "what is the man", "action"),
        ("What color is the hat?", "what color is the", "color"),
        ("What kind of tree is it?", "what kind of", "type"),
        ("What sport is this?", "what sport is", "subcategory"),
        ("Why is the road wet?", "why is the", "causal"),
        ("How does it work?", "how", None),
        ("Name the animal.", "none of the above", "subcategory"),
    ],
)
def test_official_type_and_longest_opening_agree(
    question: str, kind: str, task: str | None
) -> None:
    assert TYPES.task_of(question, kind) == (task, kind)
    assert TYPES.task_of(question, None) == (task, kind)


@pytest.mark.parametrize("question", ["Why?", "why", "WHY is that"])
def test_openings_end_at_words_whatever_the_case_and_punctuation(question: str) -> None:
    assert TYPES.type_of(question) == "why"


def test_an_opening_is_not_part_of_a_word() -> None:
    assert TYPES.type_of("Isolate the cat") == "none of the above"


@pytest.mark.parametrize(
    ("question", "kind", "task"),
    [
        ("Is this woman happy?", "is this", "action"),
        ("Are the two men sitting?", "are the", "action"),
        ("Are these women young?", "are these", "judge"),
        ("Is this a photo of a kitchen with men?", "is this a", "judge"),
        ("Does the woman smile?", "does the", "commonsense"),
    ],
)
def test_judge_questions_about_a_woman_or_men_are_action(
    question: str, kind: str, task: str
) -> None:
    assert TYPES.task_of(question, kind)[0] == task


def test_every_sampled_question_has_the_task_of_its_partition_file(shared_data: Path) -> None:
    folder = shared_data / "vqa_v2_sample"
    questions = json.loads((folder / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())
    annotations = json.loads((folder / "v2_mscoco_val2014_annotations.json").read_text())
    kinds = {a["question_id"]: a["question_type"] for a in annotations["annotations"]}
    counts: dict[str | None, int] = {}
    for entry in questions["questions"]:
        task, _ = TYPES.task_of(entry["question"], kinds[entry["question_id"]])
        counts[task] = counts.get(task, 0) + 1
    assert counts == {"location": 200, "commonsense": 200, "count": 200, "action": 200}


def test_an_unknown_type_suggests_the_nearest() -> None:
    with pytest.raises(
        KeyError, match=r"unknown question_type 'is thi' \(did you mean is this\?\)"
    ):
        TYPES.task_of("Is this red?", "is thi")


def test_a_file_of_the_user_changes_the_map(tmp_path: Path) -> None:
    path = tmp_path / "types.json"
    path.write_text('{"question_type_to_task": {"how": "count", "why": null}, "override": null}')
    types = load_question_types(path)
    assert types.task_of("How?", "how")[0] == "count"
    assert types.task_of("Why?", "why")[0] is None
    assert types.task_of("Is this woman tall?", "is this")[0] == "judge"
    assert types.task_of("Where is the cat?", "where is the")[0] == "location"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"question_type_to_tasks": {}}', "did you mean question_type_to_task"),
        ('{"question_type_to_task": {"how": "counting"}}', "task 'counting' is not in order"),
        ('{"question_type_to_task": {"how": 3}}', "must be an object of task names or null"),
        ('{"order": ["../up"]}', "must consist of letters"),
        ('{"override": {"task": "action"}}', "override must have when_question_type_in"),
        (
            '{"override": {"task": "action", "when_question_type_in": ["is"],'
            ' "regex_on_lowercased_question": "("}}',
            "not a regular expression",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "types.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load_question_types(path)
    assert any(problem in line for line in caught.value.problems)


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "types.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"types\.json"):
        load_question_types(path)
