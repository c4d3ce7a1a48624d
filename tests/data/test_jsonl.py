from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clmoe.data.prepared import read_examples
from clmoe.errors import DataError, UsageError
from clmoe.events import Event, Note, subscribe

KEYS: dict[str, Any] = {"source": "jsonl", "check_images": False}


def record(**changes: Any) -> dict[str, Any]:
    return {
        "task": "caption",
        "image": "a.png",
        "question": "What is it?",
        "answer": "a cat",
        "split": "test",
    } | changes


def test_one_file_with_every_field(
    prepare: Any, out: Path, tmp_path: Path, dump_lines: Callable[..., Path]
) -> None:
    path = dump_lines(
        tmp_path / "q.jsonl",
        record(question_id=7, answers=["a cat", "cat"], group=3, kind="open"),
        "",
        record(image="./sub//b.png"),
    )
    prepare(**KEYS, root=path, splits="test")
    one, two = read_examples(out, task="caption", split="test")
    assert (one.question_id, one.answers, one.group, one.kind) == (
        "7",
        ("a cat", "cat"),
        "3",
        "open",
    )
    assert (two.question_id, two.answers, two.group, two.kind) == ("q:3", (), None, None)
    assert two.image == "sub/b.png"
    assert one.question == "What is it?"


def test_a_folder_is_read_in_the_order_of_its_files(
    prepare: Any, tmp_path: Path, dump_lines: Callable[..., Path]
) -> None:
    root = tmp_path / "lines"
    dump_lines(root / "2.jsonl", record(task="two"))
    dump_lines(root / "1.jsonl", record(task="one"), record(task="zero"))
    summary = prepare(**KEYS, root=root, splits="test")
    assert summary.source.tasks == ("one", "zero", "two")
    assert summary.source.image_root == root


def test_validation_of_the_source_is_used_and_nothing_is_cut(
    prepare: Any, tmp_path: Path, dump_lines: Callable[..., Path]
) -> None:
    lines = [record(split="train") for _ in range(50)]
    path = dump_lines(tmp_path / "q.jsonl", *lines, record(split="val"), record())
    summary = prepare(**KEYS, root=path, val_fraction=0.5)
    assert summary.source.counts == {"caption": {"train": 50, "val": 1, "test": 1}}


def test_fields_that_nothing_reads_are_named(
    prepare: Any, tmp_path: Path, dump_lines: Callable[..., Path]
) -> None:
    path = dump_lines(tmp_path / "q.jsonl", record(anwsers=["x"], note=1))
    events: list[Event] = []
    with subscribe(events.append):
        prepare(**KEYS, root=path, splits="test")
    texts = [e.text for e in events if isinstance(e, Note)]
    assert "fields of the JSONL that nothing reads: anwsers, note" in texts


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"task": "a",', "not valid JSON: Expecting property name"),
        ("[1]", "must be an object, is a list"),
        (record(answer=""), "'answer' is empty"),
        (record(answer=3), "'answer' must be a string, is a number"),
        (record(answer={}), "'answer' must be a string, is an object"),
        (record(question=None), "'question' must be a string, is null"),
        (record(image=True), "'image' must be a string, is a boolean"),
        (record(split="dev"), "'split' must be train, val or test, is 'dev'"),
        (record(task="../up"), "task '../up' must consist of letters"),
        (record(answers="cat"), "'answers' must be a list, is a string"),
        (record(answers=[None]), "'answers' must hold strings or objects"),
        (record(question_id=1.5), "'question_id' must be an integer or a string, is a number"),
        ({"task": "a"}, "has no 'split'"),
    ],
)
def test_a_bad_line_is_reported_with_file_and_line(
    prepare: Any, tmp_path: Path, dump_lines: Callable[..., Path], line: Any, problem: str
) -> None:
    path = dump_lines(tmp_path / "q.jsonl", record(), line)
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=path, splits="test")
    (reported,) = caught.value.problems
    assert reported.startswith(f"{path}:2: {problem}")


def test_bytes_that_are_no_text_are_reported(prepare: Any, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"task": "\xff"}\n')
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=path)
    assert caught.value.problems == (f"{path}:1: not UTF-8 text (invalid start byte)",)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("../a.png", "image ../a.png leaves the image folder by '..'"),
        ("/a.png", "image /a.png is absolute; it must be relative to the image folder"),
    ],
)
def test_a_path_that_escapes_is_refused_even_when_images_are_not_checked(
    prepare: Any, tmp_path: Path, dump_lines: Callable[..., Path], image: str, problem: str
) -> None:
    path = dump_lines(tmp_path / "q.jsonl", record(image=image, question_id="x"))
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=path, splits="test")
    assert caught.value.problems == (f"question x: {problem}",)


def test_bad_pictures_are_reported_for_each_question(
    prepare: Any,
    tmp_path: Path,
    dump_lines: Callable[..., Path],
    picture: Callable[..., Path],
) -> None:
    root = tmp_path / "q"
    picture(root / "good.png")
    picture(root / "cut.png").write_bytes((root / "good.png").read_bytes()[:-30])
    (root / "link.png").symlink_to(picture(tmp_path / "outside.png"))
    names = ["good.png", "cut.png", "link.png", "gone.png", "gone.png"]
    path = dump_lines(
        root / "q.jsonl",
        *(record(image=name, question_id=number) for number, name in enumerate(names)),
    )
    with pytest.raises(DataError) as caught:
        prepare(source="jsonl", root=path, splits="test")
    cut, link, gone, again = caught.value.problems
    assert cut.startswith("question 1: image cut.png cannot be decoded")
    assert link == f"question 2: image link.png leads outside {root} by a symbolic link"
    assert gone == f"question 3: image gone.png is missing from {root}"
    assert again == f"question 4: image gone.png is missing from {root}"


def test_keeping_going_writes_what_was_left_out(
    prepare: Any,
    out: Path,
    tmp_path: Path,
    dump_lines: Callable[..., Path],
    picture: Callable[..., Path],
) -> None:
    picture(tmp_path / "q" / "a.png")
    path = dump_lines(
        tmp_path / "q" / "q.jsonl",
        record(question_id=1),
        "{",
        record(question_id=1),
        record(question_id=2, image="gone.png"),
    )
    summary = prepare(source="jsonl", root=path, splits="test", keep_going=True)
    assert summary.source.counts == {"caption": {"test": 1}}
    assert summary.rejected == 3
    assert summary.warnings == ("3 records were left out; see rejected.jsonl",)
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["where"] for line in lines] == [f"{path}:2", "question 1", "question 2"]
    assert lines[0]["record"] == "{"
    assert lines[2]["record"]["image"] == "gone.png"


def test_all_problems_are_counted_and_the_limit_is_kept(
    prepare: Any, tmp_path: Path, dump_lines: Callable[..., Path]
) -> None:
    path = dump_lines(tmp_path / "q.jsonl", *(record(answer="") for _ in range(30)))
    with pytest.raises(
        DataError, match="^30 problems in the data; the first 7 are listed$"
    ) as caught:
        prepare(**KEYS, root=path, error_limit=7)
    assert len(caught.value.problems) == 7


def test_a_missing_file_and_an_empty_folder_are_named(prepare: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=tmp_path / "no.jsonl")
    assert caught.value.problems == (f"{tmp_path / 'no.jsonl'}: missing",)
    with pytest.raises(DataError, match=r"there is no \*\.jsonl file in"):
        prepare(**KEYS, root=tmp_path)


def test_an_unknown_task_gets_a_suggestion(
    prepare: Any, tmp_path: Path, dump_lines: Callable[..., Path]
) -> None:
    path = dump_lines(tmp_path / "q.jsonl", record())
    with pytest.raises(UsageError, match=r"no task 'captions' \(did you mean caption\?\)"):
        prepare(**KEYS, root=path, tasks=["captions"])
