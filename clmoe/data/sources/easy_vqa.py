"""easy-VQA (Zhou, 2019, MIT) as a continual sequence of six tasks.

Questions that open with `what` ask for a shape or a colour; the rest are answered yes or no, about
a shape or a colour, plainly or negated.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from clmoe.data.checks import Problems, require_paths, type_name
from clmoe.data.example import Example
from clmoe.data.sources.reading import (
    BadRecordError,
    data_root,
    image_root,
    read_list,
    splits_to_read,
)
from clmoe.data.sources.registry import LoadedSource
from clmoe.recipe.schema import Data

TASKS = ("shape", "color", "has_shape", "has_color", "no_shape", "no_color")
EXPECTED = "data.root must hold {train,test}/questions.json and {train,test}/images of easy-VQA"
COLOR = re.compile(r"\b(black|gray|grey|red|green|blue|yellow|teal|brown)\b")
SHAPE = re.compile(r"\b(circle|rectangle|triangle)\b")


class EasyVqaSource:
    """The two folders `train` and `test` of easy-VQA."""

    name = "easy_vqa"
    suffix = ""
    default_order = TASKS

    def required_files(self, config: Data) -> list[Path]:
        """Return the question files of the splits asked for."""
        root = data_root(config, source=self.name)
        splits = splits_to_read(config.splits, has_validation=False)
        return [root / split / "questions.json" for split in splits]

    def load(self, config: Data, *, workspace: Path, report: Problems) -> LoadedSource:
        """Read the questions of the splits asked for; see `Source.load`."""
        files = self.required_files(config)
        images = image_root(config, data_root(config, source=self.name))
        folders = [images / path.parent.name / "images" for path in files]
        wanted = [*files, *folders] if config.check_images else files
        require_paths(self.name, wanted, expected=EXPECTED)
        examples: dict[tuple[str, str], list[Example]] = {}
        for path in files:
            split = path.parent.name
            for position, entry in enumerate(read_list(path, report=report)):
                try:
                    example = _example(entry, question_id=f"{split}-{position}", split=split)
                except BadRecordError as problem:
                    report.add(f"{path}: [{position}]", str(problem), record=entry)
                    continue
                examples.setdefault((example.task, split), []).append(example)
        return LoadedSource(examples=examples, image_root=images, order=TASKS, has_validation=False)


def task_of(question: str) -> str | None:
    """Return the task of an easy-VQA question, or None where it fits none of the six."""
    asked = question.lower().strip()
    if asked.startswith("what"):
        if "what shape" in asked or re.search(rf"what is the {COLOR.pattern} shape", asked):
            return "shape"
        return "color" if "color" in asked else None
    negated = " not " in asked or asked.startswith("is no ")
    subject = "color" if COLOR.search(asked) else "shape" if SHAPE.search(asked) else None
    return subject and f"{'no' if negated else 'has'}_{subject}"


def _example(entry: Any, *, question_id: str, split: str) -> Example:
    """Read `[question, answer, image_id]`."""
    if not isinstance(entry, list) or len(entry) != 3:
        raise BadRecordError("must be a list of question, answer and image id")
    question, answer, image_id = entry
    for name, value in (("question", question), ("answer", answer)):
        if not isinstance(value, str):
            raise BadRecordError(f"the {name} must be a string, is {type_name(value)}")
        if not value.strip():
            raise BadRecordError(f"the {name} is empty")
    if isinstance(image_id, bool) or not isinstance(image_id, int):
        raise BadRecordError(f"the image id must be an integer, is {type_name(image_id)}")
    task = task_of(question)
    if task is None:
        raise BadRecordError(f"'{question}' fits none of the tasks {', '.join(TASKS)}")
    return Example(
        question_id=question_id,
        task=task,
        split=split,
        image=f"{split}/images/{image_id}.png",
        question=question.strip(),
        answer=answer.strip(),
    )
