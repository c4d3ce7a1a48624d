"""The partition files of VQACL (Zhang et al., 2023): VQA v2 already split into ten tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clmoe.data.checks import Problems, require_paths
from clmoe.data.example import Example, most_frequent_answer
from clmoe.data.question_types import load_question_types
from clmoe.data.sources.coco import CocoImages
from clmoe.data.sources.reading import (
    BadRecordError,
    answer_list,
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

FILE = "karpathy_{split}_q_{task}.json"
EXPECTED = "data.root must hold karpathy_{train,val,test}_q_<task>.json of the VQACL release"


class VqaclSource:
    """The per-task JSON files of VQACL."""

    name = "vqacl"
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
                    question_id = identifier(record, "question_id")
                    where = f"question {question_id}"
                    found.append(_example(record, question_id, task=task, split=split, coco=coco))
                except BadRecordError as problem:
                    report.add(where, str(problem), record=entry)
        return LoadedSource(examples=examples, image_root=images, order=self.default_order)

    def _files(self, config: Data) -> dict[tuple[str, str], Path]:
        root = data_root(config, source=self.name)
        tasks = select_tasks(config.tasks, self.default_order)
        splits = splits_to_read(config.splits, has_validation=True)
        return {
            (task, split): root / FILE.format(split=split, task=task)
            for task in tasks
            for split in splits
        }


def _example(
    record: dict[str, Any], question_id: str, *, task: str, split: str, coco: CocoImages
) -> Example:
    """Read one record; `label` may be empty, and the ten answers count before it."""
    image = text(record, "img_id")
    answers = answer_list(record, "answers")
    return Example(
        question_id=question_id,
        task=task,
        split=split,
        image=coco.path(image if image.endswith(".jpg") else f"{image}.jpg"),
        question=text(record, "sent"),
        answer=_answer(record, answers),
        answers=answers,
        kind=text(record, "question_type") if "question_type" in record else None,
    )


def _answer(record: dict[str, Any], answers: tuple[str, ...]) -> str:
    """Return the most frequent of the ten answers, or the best of `label` where there are none."""
    scores = record.get("label") or {}
    if not isinstance(scores, dict) or not all(
        isinstance(score, int | float) for score in scores.values()
    ):
        raise BadRecordError("'label' must be an object of answers and scores")
    best = [answer for answer, score in scores.items() if score == max(scores.values())]
    try:
        return most_frequent_answer(answers or best)
    except ValueError as problem:
        raise BadRecordError(str(problem)) from problem
