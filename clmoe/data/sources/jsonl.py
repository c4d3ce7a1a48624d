"""Any tasks of questions about pictures, one JSON object per line.

`{"task", "image", "question", "answer", "split"}` are needed; `answers`, `question_id`, `group`
and `kind` may be there. `data.root` is one file or a folder of `*.jsonl`; paths of pictures are
relative to `data.images`, or else to that folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clmoe.data.checks import Problems, require_paths
from clmoe.data.example import SPLITS, Example
from clmoe.data.sources.reading import (
    BadRecordError,
    answer_list,
    data_root,
    identifier,
    image_root,
    mapping,
    optional,
    relative_path,
    task_name,
    text,
)
from clmoe.data.sources.registry import LoadedSource
from clmoe.errors import DataError
from clmoe.events import Note, emit, track
from clmoe.recipe.schema import Data

EXPECTED = "data.root is one .jsonl file, or a folder that holds *.jsonl files"
FIELDS = ("task", "image", "question", "answer", "split")
OPTIONAL = ("answers", "question_id", "group", "kind")


class JsonlSource:
    """JSONL files written for clmoe."""

    name = "jsonl"
    suffix = ""
    default_order = ()

    def required_files(self, config: Data) -> list[Path]:
        """Return the file, or every `*.jsonl` of the folder, sorted by name."""
        root = data_root(config, source=self.name)
        return sorted(root.glob("*.jsonl")) if root.is_dir() else [root]

    def load(self, config: Data, *, workspace: Path, report: Problems) -> LoadedSource:
        """Read every line; see `Source.load`."""
        root = data_root(config, source=self.name)
        files = self.required_files(config)
        require_paths(self.name, files, expected=EXPECTED)
        if not files:
            raise DataError(f"there is no *.jsonl file in {root}", hint=EXPECTED)
        examples: dict[tuple[str, str], list[Example]] = {}
        ignored: set[str] = set()
        for path in files:
            with path.open("rb") as lines:
                for number, line in enumerate(track(lines, label=path.name), start=1):
                    if not line.strip():
                        continue
                    try:
                        example = _example(
                            line, question_id=f"{path.stem}:{number}", ignored=ignored
                        )
                    except BadRecordError as problem:
                        record = line.decode("utf-8", errors="replace").rstrip("\n")
                        report.add(f"{path}:{number}", str(problem), record=record)
                        continue
                    examples.setdefault((example.task, example.split), []).append(example)
        if ignored:
            names = ", ".join(sorted(ignored))
            emit(Note(f"fields of the JSONL that nothing reads: {names}", level="warning"))
        return LoadedSource(
            examples=examples,
            image_root=image_root(config, root if root.is_dir() else root.parent),
            order=tuple(dict.fromkeys(task for task, _ in examples)),
            has_validation=any(split == "val" for _, split in examples),
        )


def _example(line: bytes, *, question_id: str, ignored: set[str]) -> Example:
    record = _parse(line)
    ignored.update(record.keys() - {*FIELDS, *OPTIONAL})
    split = text(record, "split")
    if split not in SPLITS:
        raise BadRecordError(f"'split' must be train, val or test, is '{split}'")
    return Example(
        question_id=optional(record, "question_id", identifier) or question_id,
        task=task_name(record, "task"),
        split=split,
        image=relative_path(record, "image"),
        question=text(record, "question"),
        answer=text(record, "answer"),
        answers=answer_list(record, "answers"),
        group=optional(record, "group", identifier),
        kind=optional(record, "kind", text),
    )


def _parse(line: bytes) -> dict[str, Any]:
    try:
        return mapping(json.loads(line))
    except json.JSONDecodeError as error:
        raise BadRecordError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise BadRecordError(f"not UTF-8 text ({error.reason})") from error
