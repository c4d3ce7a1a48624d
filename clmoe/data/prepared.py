"""Prepared questions on disk: one Arrow file per task and split, and what is worth knowing of them.

Layout: `<task>/<split>/data.arrow` (Arrow stream, readable by `datasets.Dataset.from_file`) and
`source.json`. The same questions always give the same bytes, so that digests tell what changed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from clmoe.data.example import Example
from clmoe.errors import DataError

FORMAT = 1
DATA = "data.arrow"
SOURCE = "source.json"
ROWS_PER_BATCH = 1000
TOP_ANSWERS = 10
SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("image", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("group", pa.string()),
        ("kind", pa.string()),
    ]
)


@dataclass(frozen=True)
class PreparedSource:
    """What `source.json` says about a folder of prepared questions.

    Attributes:
        source: Name of the source.
        image_root: The folder that paths of images are relative to.
        tasks: The tasks, in the source's default order.
        splits: The splits there are, in the order train, val, test.
        suffix: The instruction that follows every question, or an empty string.
        suffixes: The tasks whose questions another instruction follows, with that one.
        counts: Questions by task and split.
        statistics: Answer distributions, duplicates, leakage and facts of the source.
    """

    source: str
    image_root: Path
    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    suffix: str
    suffixes: Mapping[str, str]
    counts: Mapping[str, Mapping[str, int]]
    statistics: Mapping[str, Any] = field(default_factory=dict)


def split_folder(directory: Path, *, task: str, split: str) -> Path:
    """Return the folder of one task and split."""
    return directory / task / split


def write_split(directory: Path, examples: Sequence[Example], *, task: str, split: str) -> Path:
    """Write the questions of one task and split, and return the folder that holds them."""
    folder = split_folder(directory, task=task, split=split)
    folder.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(folder / DATA), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        for start in range(0, len(examples), ROWS_PER_BATCH):
            rows = examples[start : start + ROWS_PER_BATCH]
            columns = [
                pa.array([getattr(row, name) for row in rows], type=kind)
                for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    return folder


def read_split(directory: Path, *, task: str, split: str) -> Dataset:
    """Return the questions of one task and split as a memory-mapped data set.

    Its columns are the fields of `Example`.

    Raises:
        DataError: There is no such split, or the file is damaged.
    """
    path = split_folder(directory, task=task, split=split) / DATA
    if not path.exists():
        raise DataError(f"there are no prepared {split} questions of {task} in {directory}")
    try:
        return Dataset.from_file(str(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def read_examples(directory: Path, *, task: str, split: str) -> list[Example]:
    """Return the questions of one task and split as a list; see `read_split` for errors."""
    return [
        Example(**(row | {"answers": tuple(row["answers"])}))
        for row in read_split(directory, task=task, split=split)
    ]


def write_source(directory: Path, described: PreparedSource, *, workspace: Path) -> Path:
    """Write `source.json`.

    An image root inside `workspace` is written relative to `directory`, so that both can be moved
    together; any other is absolute.
    """
    root = described.image_root.resolve()
    inside = root.is_relative_to(workspace.resolve())
    content = {
        "format": FORMAT,
        "source": described.source,
        "image_root": os.path.relpath(root, directory.resolve()) if inside else str(root),
        "tasks": list(described.tasks),
        "splits": list(described.splits),
        "suffix": described.suffix,
        "suffixes": described.suffixes,
        "counts": described.counts,
        "statistics": described.statistics,
    }
    path = directory / SOURCE
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_source(directory: Path) -> PreparedSource:
    """Read `source.json`; a relative image root is taken from where the folder is now.

    Raises:
        DataError: The file is missing, damaged, or of a newer format.
    """
    path = directory / SOURCE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path} has format {content['format']}; this version reads {FORMAT}")
        return PreparedSource(
            source=content["source"],
            image_root=(directory / content["image_root"]).resolve(),
            tasks=tuple(content["tasks"]),
            splits=tuple(content["splits"]),
            suffix=content["suffix"],
            suffixes=content.get("suffixes", {}),
            counts=content["counts"],
            statistics=content["statistics"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def describe_split(examples: Sequence[Example]) -> dict[str, Any]:
    """Count what one task and split holds.

    Returns:
        `questions`, `images`, `distinct_answers`, `majority_answer`, `majority_rate` (the share
        that always giving that answer would score), `answers` (the most frequent with their
        counts) and `duplicates` (questions asked again about the same image).
    """
    answers = Counter(example.answer for example in examples)
    ranked = sorted(answers.items(), key=lambda item: (-item[1], item[0]))
    asked = {(example.image, example.question) for example in examples}
    majority, count = ranked[0] if ranked else (None, 0)
    return {
        "questions": len(examples),
        "images": len({example.image for example in examples}),
        "distinct_answers": len(answers),
        "majority_answer": majority,
        "majority_rate": round(count / len(examples), 4) if examples else None,
        "answers": dict(ranked[:TOP_ANSWERS]),
        "duplicates": len(examples) - len(asked),
    }


def describe_leakage(
    prepared: Mapping[tuple[str, str], Sequence[Example]], digests: Mapping[str, bytes]
) -> dict[str, int | None]:
    """Count the test images that training sees too, in whichever task.

    Args:
        prepared: The questions by (task, split).
        digests: A hash of each image's pixels, or nothing when images were not opened.

    Returns:
        `test_images_in_train` and `test_images_in_val` by path, and `test_pictures_in_train` by
        content, None when unknown.
    """
    images: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for (_, split), examples in prepared.items():
        images[split].update(example.image for example in examples)
    pictures = {
        split: {digests[image] for image in found if image in digests}
        for split, found in images.items()
    }
    return {
        "test_images_in_train": len(images["test"] & images["train"]),
        "test_images_in_val": len(images["test"] & images["val"]),
        "test_pictures_in_train": len(pictures["test"] & pictures["train"]) if digests else None,
    }
