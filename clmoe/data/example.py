"""One question about one image: the only record that the rest of the library sees."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SPLITS = ("train", "val", "test")
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""A task names folders, so it may hold nothing that means something in a path."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question, its picture and its answer.

    Attributes:
        question_id: Unique within one task and split.
        task: Name of the task it belongs to; also the name of a folder on disk.
        split: `train`, `val` or `test`.
        image: Path relative to the image root, with forward slashes.
        question: The question, with the source's instruction suffix already applied.
        answer: The one answer to learn and to score against.
        answers: What several people answered, where the source says so; may be empty.
        group: What belongs together inside a task, such as the turns of one conversation.
        kind: The source's own type of question, such as VQA v2's `question_type`.
    """

    question_id: str
    task: str
    split: str
    image: str
    question: str
    answer: str
    answers: tuple[str, ...] = ()
    group: str | None = None
    kind: str | None = None


def most_frequent_answer(answers: Iterable[str]) -> str:
    """Return the answer that most people gave.

    A tie between `yes` and `no` is `yes`; any other tie goes to the answer that comes first.

    Args:
        answers: One answer per person, at least one of them not blank.

    Raises:
        ValueError: Every answer is blank.
    """
    counts = Counter(answer.strip() for answer in answers if answer.strip())
    if not counts:
        raise ValueError("every answer is empty")
    most = max(counts.values())
    first = [answer for answer, count in counts.items() if count == most]
    return "yes" if set(first) == {"yes", "no"} else first[0]


def apply_suffix(question: str, suffix: str) -> str:
    """Put the instruction `suffix` on a line of its own, unless the question has it already."""
    if not suffix or question.rstrip().endswith(suffix):
        return question
    return f"{question}\n{suffix}"


def select_splits(wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the splits asked for in the fixed order train, val, test; `None` means all."""
    return tuple(split for split in SPLITS if wanted is None or split in wanted)
