"""CL4VQA, the files released with CL-MoE: one conversation per image and task.

Training entries may have several turns; each becomes a question of its own, `<entry id>#<turn>`,
and `Example.group` keeps the entry, so that the turns of one picture can be trained together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clmoe.data.checks import Problems, require_paths
from clmoe.data.example import Example
from clmoe.data.question_types import load_question_types
from clmoe.data.sources.coco import CocoImages
from clmoe.data.sources.reading import (
    BadRecordError,
    data_root,
    identifier,
    image_root,
    mapping,
    read_list,
    select_tasks,
    splits_to_read,
    text,
)
from clmoe.data.sources.registry import LoadedSource
from clmoe.data.sources.vqa_v2 import SUFFIX
from clmoe.events import track
from clmoe.recipe.schema import Data

FILES = {"train": "train_q_{task}.json", "test": "test_q_{task}.json"}
EXPECTED = "data.root must hold train_q_<task>.json and test_q_<task>.json of the CL4VQA release"
IMAGE_TOKEN = "<image>"


class Cl4VqaSource:
    """The conversation files of CL4VQA."""

    name = "cl4vqa"
    suffix = SUFFIX

    @property
    def default_order(self) -> tuple[str, ...]:
        """The ten tasks, recognition first and causal last."""
        return load_question_types().order

    def required_files(self, config: Data) -> list[Path]:
        """Return one file per task and split asked for."""
        return list(self._files(config).values())

    def load(self, config: Data, *, workspace: Path, report: Problems) -> LoadedSource:
        """Read the questions of the tasks and splits asked for; see `Source.load`."""
        files = self._files(config)
        images = image_root(config, data_root(config, source=self.name))
        require_paths(self.name, list(files.values()), expected=EXPECTED)
        coco = CocoImages(images)
        examples: dict[tuple[str, str], list[Example]] = {}
        for (task, split), path in track(files.items(), label="files"):
            found = examples.setdefault((task, split), [])
            for position, entry in enumerate(read_list(path, report=report)):
                where = f"{path}: [{position}]"
                try:
                    record = mapping(entry)
                    if split == "test":
                        found.append(_test_question(record, task=task, coco=coco))
                    else:
                        found.extend(_turns(record, task=task, position=position, coco=coco))
                except BadRecordError as problem:
                    report.add(_name(entry, split) or where, str(problem), record=entry)
        return LoadedSource(
            examples=examples,
            image_root=images,
            order=self.default_order,
            has_validation=False,
        )

    def _files(self, config: Data) -> dict[tuple[str, str], Path]:
        root = data_root(config, source=self.name)
        tasks = select_tasks(config.tasks, self.default_order)
        splits = splits_to_read(config.splits, has_validation=False)
        return {
            (task, split): root / FILES[split].format(task=task)
            for task in tasks
            for split in splits
        }


def _name(entry: Any, split: str) -> str | None:
    """Return `question 12` where a broken record has an id at least."""
    value = entry.get("question_id" if split == "test" else "id") if isinstance(entry, dict) else 0
    return f"question {value}" if isinstance(value, int | str) and value else None


def _test_question(record: dict[str, Any], *, task: str, coco: CocoImages) -> Example:
    """Read `{question_id, image, text, answer}`."""
    return Example(
        question_id=identifier(record, "question_id"),
        task=task,
        split="test",
        image=coco.path(text(record, "image")),
        question=text(record, "text"),
        answer=text(record, "answer"),
    )


def _turns(
    record: dict[str, Any], *, task: str, position: int, coco: CocoImages
) -> Iterator[Example]:
    """Read `{id?, image, conversations: [{from: human | gpt, value}, ...]}`."""
    entry = identifier(record, "id") if "id" in record else f"{task}-{position}"
    image = coco.path(text(record, "image"))
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise BadRecordError("'conversations' must be a list of human and gpt turns in pairs")
    examples = []
    for number in range(0, len(turns), 2):
        question, answer = mapping(turns[number]), mapping(turns[number + 1])
        speakers = (question.get("from"), answer.get("from"))
        if speakers != ("human", "gpt"):
            raise BadRecordError(
                f"turns {number} and {number + 1} must be from human and gpt, are from"
                f" {speakers[0]} and {speakers[1]}"
            )
        asked = text(question, "value").replace(IMAGE_TOKEN, "").strip()
        if not asked:
            raise BadRecordError(f"the question of turn {number} is empty")
        examples.append(
            Example(
                question_id=f"{entry}#{number // 2}",
                task=task,
                split="train",
                image=image,
                question=asked,
                answer=text(answer, "value"),
                group=entry,
            )
        )
    return iter(examples)
