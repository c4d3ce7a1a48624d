from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from clmoe.data.example import Example, apply_suffix
from clmoe.data.images import ImageCheck
from clmoe.data.prepared import (
    SCHEMA,
    describe_leakage,
    describe_split,
    read_examples,
    read_source,
    read_split,
    write_split,
)
from clmoe.data.selection import choose, cut_validation, validation_images
from clmoe.data.sources.registry import SOURCES, get_source
from clmoe.errors import DataError, UsageError
from clmoe.events import Event, Progress, subscribe


def example(number: int, **changes: Any) -> Example:
    fields: dict[str, Any] = {
        "question_id": str(number),
        "task": "t",
        "split": "train",
        "image": f"{number // 2}.png",
        "question": "What?",
        "answer": "yes",
    }
    return Example(**(fields | changes))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def line(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "task": "t",
        "image": f"{number}.png",
        "question": "What?",
        "answer": "a",
        "split": "train",
        "question_id": number,
    } | changes


@pytest.fixture
def lines(tmp_path: Path, dump_lines: Callable[..., Path]) -> Path:
    """Two tasks of a hundred training and ten test questions, five answers."""
    records = [
        line(n, task=task, answer=f"a{n % 5}", split="train" if n < 100 else "test")
        for task in ("one", "two")
        for n in range(110)
    ]
    return dump_lines(tmp_path / "q.jsonl", *records)


KEYS: dict[str, Any] = {"source": "jsonl", "check_images": False}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    examples = [
        example(1, answers=("a", "b"), group="g", kind="k"),
        example(2, question="Wü\n日本", answers=()),
    ] + [example(n) for n in range(3, 2500)]
    write_split(tmp_path, examples, task="t", split="train")
    assert read_examples(tmp_path, task="t", split="train") == examples
    table = read_split(tmp_path, task="t", split="train")
    assert isinstance(table, Dataset)
    assert table.column_names == SCHEMA.names
    assert table[0]["answers"] == ["a", "b"]
    assert table[2400]["question_id"] == "2401"


def test_a_split_that_is_not_there_and_a_damaged_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared val questions of t in"):
        read_split(tmp_path, task="t", split="val")
    folder = write_split(tmp_path, [example(1)], task="t", split="train")
    (folder / "data.arrow").write_bytes(b"not arrow")
    with pytest.raises(DataError, match="is damaged"):
        read_split(tmp_path, task="t", split="train")


def test_the_same_input_gives_the_same_bytes(prepare: Any, out: Path, lines: Path) -> None:
    keys = KEYS | {"root": lines, "train_per_task": 30, "val_fraction": 0.2}
    prepare(**keys)
    first = digests(out)
    shutil.rmtree(out)
    prepare(**keys)
    assert digests(out) == first
    assert len(first) == 7
    shutil.rmtree(out)
    prepare(**keys, seed=1)
    assert digests(out)["one/train/data.arrow"] != first["one/train/data.arrow"]


def test_leaving_a_task_out_changes_nothing_in_the_others(
    prepare: Any, out: Path, lines: Path
) -> None:
    keys = KEYS | {"root": lines, "train_per_task": 30, "val_fraction": 0.2}
    prepare(**keys)
    before = {name: d for name, d in digests(out).items() if name.startswith("two/")}
    shutil.rmtree(out)
    prepare(**keys, tasks=["two"])
    after = digests(out)
    del after["source.json"]
    assert after == before
    assert len(after) == 3


def test_limits_are_kept_for_each_split(prepare: Any, lines: Path) -> None:
    summary = prepare(
        **KEYS, root=lines, train_per_task=30, val_per_task=5, test_per_task=4, val_fraction=0.3
    )
    counts = {"train": 30, "val": 5, "test": 4}
    assert summary.source.counts == {"one": counts, "two": counts}


def test_validation_is_cut_only_where_it_is_asked_for(prepare: Any, lines: Path) -> None:
    summary = prepare(**KEYS, root=lines, splits="train,test")
    assert summary.source.counts["one"] == {"train": 100, "test": 10}
    assert summary.source.splits == ("train", "test")
    summary = prepare(**KEYS, root=lines, splits="val", val_fraction=0.3)
    assert list(summary.source.counts["one"]) == ["val"]


def test_validation_nobody_named_may_be_empty_with_a_warning_but_not_one_asked_for(
    prepare: Any, lines: Path
) -> None:
    summary = prepare(**KEYS, root=lines, val_fraction=0)
    assert "one has no val questions: none were in the source or in the cut" in summary.warnings
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=lines, val_fraction=0, splits="val,test")
    assert caught.value.problems == ("one/val: no questions", "two/val: no questions")


def test_a_split_the_source_lacks_is_an_error(
    prepare: Any, tmp_path: Path, dump_lines: Callable[..., Path]
) -> None:
    path = dump_lines(tmp_path / "q.jsonl", line(1, split="test"))
    with pytest.raises(DataError) as caught:
        prepare(**KEYS, root=path)
    assert caught.value.problems == ("t/train: no questions",)


def test_an_empty_file_is_an_error(prepare: Any, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").touch()
    with pytest.raises(DataError, match="no questions were found"):
        prepare(**KEYS, root=tmp_path)


def test_the_suffix_of_the_recipe_is_applied_once(
    prepare: Any, out: Path, tmp_path: Path, dump_lines: Callable[..., Path]
) -> None:
    records = [line(1, split="test"), line(2, split="test", question="What?\nBe brief.")]
    path = dump_lines(tmp_path / "q.jsonl", *records)
    prepare(**KEYS, root=path, splits="test", suffix="Be brief.")
    questions = {e.question for e in read_examples(out, task="t", split="test")}
    assert questions == {"What?\nBe brief."}


def test_a_task_may_have_its_own_suffix(prepare: Any, out: Path) -> None:
    sizes = {"train_per_task": 4, "val_per_task": 2, "test_per_task": 2}
    shapes = {"source": "shapes", "tasks": ("color", "count"), **sizes}
    prepare(**shapes, suffix="Be brief.", suffixes={"count": "A number."})
    ends = {
        task: {e.question.split("\n", 1)[1] for e in read_examples(out, task=task, split="test")}
        for task in ("color", "count")
    }
    assert ends == {"color": {"Be brief."}, "count": {"A number."}}
    described = read_source(out)
    assert (described.suffix, described.suffixes) == ("Be brief.", {"count": "A number."})
    with pytest.raises(
        UsageError, match="data.suffixes: there is no task 'cuont' .did you mean count"
    ):
        prepare(**shapes, suffixes={"cuont": "A number."})


def test_an_empty_suffix_switches_the_sources_off() -> None:
    assert apply_suffix("What?", "") == "What?"


def test_every_source_of_vqa_v2_has_the_suffix_and_the_others_none() -> None:
    suffixes = {name: get_source(name).suffix for name in SOURCES}
    llava = "Answer the question using a single word or phrase."
    assert suffixes == {
        "shapes": "",
        "vqa_v2": llava,
        "cl4vqa": llava,
        "vqacl": llava,
        "easy_vqa": "",
        "jsonl": "",
    }
    assert get_source("hf:somebody/something").name == "hf:somebody/something"


def test_an_unknown_source_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="no data source 'vqa-v2'; there are: shapes") as caught:
        get_source("vqa-v2")
    assert caught.value.hint == "did you mean vqa_v2?"


def test_the_statistics_of_a_split() -> None:
    examples = [
        example(0, answer="no"),
        example(1, answer="yes"),
        example(2, answer="no"),
        example(3, answer="cat", question="Who?"),
    ]
    assert describe_split(examples) == {
        "questions": 4,
        "images": 2,
        "distinct_answers": 3,
        "majority_answer": "no",
        "majority_rate": 0.5,
        "answers": {"no": 2, "cat": 1, "yes": 1},
        "duplicates": 1,
    }


def test_leakage_is_found_by_path_and_by_pixels() -> None:
    prepared = {
        ("a", "train"): [example(0, image="x.png"), example(1, image="y.png")],
        ("a", "val"): [example(0, image="z.png")],
        ("b", "test"): [example(0, image="x.png"), example(1, image="copy.png")],
    }
    by_path = {"test_images_in_train": 1, "test_images_in_val": 0}
    assert describe_leakage(prepared, {}) == by_path | {"test_pictures_in_train": None}
    pixels = {"x.png": b"x", "y.png": b"y", "z.png": b"z", "copy.png": b"y"}
    assert describe_leakage(prepared, pixels) == by_path | {"test_pictures_in_train": 2}


def test_leakage_is_a_warning(
    prepare: Any,
    tmp_path: Path,
    dump_lines: Callable[..., Path],
    picture: Callable[..., Path],
) -> None:
    picture(tmp_path / "1.png")
    path = dump_lines(tmp_path / "q.jsonl", line(1), line(1, split="test"))
    summary = prepare(source="jsonl", root=path, splits="train,test")
    assert summary.warnings == (
        "1 test images are training images too",
        "1 test pictures equal a training picture pixel for pixel",
    )
    assert summary.source.statistics["leakage"]["test_images_in_train"] == 1


def test_an_interrupt_does_not_wait_for_the_remaining_images(
    prepare: Any,
    tmp_path: Path,
    dump_lines: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at = []

    def slow(root: Path, relative: str) -> ImageCheck:
        looked_at.append(relative)
        time.sleep(0.01)
        return ImageCheck()

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.label == "images" and event.done:
            raise KeyboardInterrupt

    monkeypatch.setattr("clmoe.data.prepare.check_image", slow)
    path = dump_lines(tmp_path / "q.jsonl", *(line(n) for n in range(5000)))
    with subscribe(interrupt), pytest.raises(KeyboardInterrupt):
        prepare(source="jsonl", root=path, splits="train")
    assert 0 < len(looked_at) < 2500


def test_source_json_says_what_there_is_and_moves_with_its_pictures(
    prepare: Any, out: Path, tmp_path: Path, lines: Path
) -> None:
    summary = prepare(**KEYS, root=lines)
    described = read_source(out)
    assert described == summary.source
    assert described.image_root == tmp_path
    assert described.tasks == ("one", "two")
    moved = tmp_path / "elsewhere"
    (tmp_path / "out").rename(moved)
    assert read_source(moved / "data").image_root == tmp_path


def test_an_image_root_inside_the_workspace_moves_along(
    prepare: Any, out: Path, tmp_path: Path
) -> None:
    summary = prepare(
        source="shapes",
        tasks=["count"],
        train_per_task=4,
        val_per_task=2,
        test_per_task=2,
    )
    assert summary.source.counts == {"count": {"train": 4, "val": 2, "test": 2}}
    moved = tmp_path / "store"
    (tmp_path / "out").rename(moved)
    described = read_source(moved / "data")
    first = read_examples(moved / "data", task="count", split="test")[0]
    assert (described.image_root / first.image).is_file()


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"format": 99}'])
def test_a_damaged_source_json_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "source.json").write_text(content)
    with pytest.raises(DataError, match=r"source\.json"):
        read_source(tmp_path)


def test_balanced_answers_are_equally_many() -> None:
    examples = [example(n, answer="yes" if n < 12 else "no") for n in range(100)]
    kept = choose(examples, limit=None, balance=True, seed=0)
    assert Counter(e.answer for e in kept) == {"yes": 12, "no": 12}
    assert [int(e.question_id) for e in kept] == sorted(int(e.question_id) for e in kept)
    assert len(choose(examples, limit=11, balance=True, seed=0)) == 11
    assert len(choose(examples, limit=1000, balance=True, seed=0)) == 24


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
    st.integers(1, 70) | st.none(),
    st.booleans(),
    st.integers(0, 5),
)
def test_choosing_keeps_order_and_limit_and_balance(
    answers: list[str], limit: int | None, balance: bool, seed: int
) -> None:
    examples = [example(n, answer=answer) for n, answer in enumerate(answers)]
    kept = choose(examples, limit=limit, balance=balance, seed=seed)
    numbers = [int(e.question_id) for e in kept]
    assert numbers == sorted(set(numbers))
    assert limit is None or len(kept) <= limit
    counts = Counter(e.answer for e in kept)
    if balance:
        of_each = [counts[answer] for answer in set(answers)]
        assert max(of_each) - min(of_each) <= 1
    else:
        assert len(kept) == min(len(answers), limit or len(answers))


@given(
    st.sets(st.integers(0, 10_000), min_size=1, max_size=200),
    st.floats(0, 0.9),
    st.integers(0, 3),
)
def test_validation_never_shares_an_image_with_train(
    images: set[int], fraction: float, seed: int
) -> None:
    examples = [example(2 * image + k) for image in sorted(images) for k in (0, 1)]
    chosen = validation_images([e.image for e in examples], fraction=fraction, seed=seed)
    stay, cut = cut_validation(examples, chosen)
    assert len(stay) + len(cut) == len(examples)
    assert {e.image for e in stay}.isdisjoint({e.image for e in cut})
    assert {e.split for e in cut} <= {"val"}
    assert bool(cut) == (fraction > 0)
