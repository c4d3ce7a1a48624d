"""Which task a VQA v2 question belongs to.

VQA v2 gives every question one of 65 `question_type` values: the longest of 64 listed openings
that it starts with, or `none of the above`. The VQACL partition (Zhang et al., 2023) groups those
types into ten tasks. Two things need care: `how` belongs to no task, and questions of some judge
types that ask about a woman or men are action (a rule inferred from the published partition).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clmoe.data.checks import did_you_mean, type_name
from clmoe.data.example import TASK_NAME
from clmoe.errors import DataError

SHIPPED = Path(__file__).with_name("question_types.json")
NONE_OF_THE_ABOVE = "none of the above"


@dataclass(frozen=True)
class Override:
    """Questions of certain types whose text sends them to another task."""

    types: frozenset[str]
    pattern: re.Pattern[str]
    task: str


@dataclass(frozen=True)
class QuestionTypes:
    """The map from question types to tasks.

    Attributes:
        order: The tasks in their default order.
        tasks: Task of each question type; None where the type belongs to no task.
        override: The exception to the map, if there is one.
    """

    order: tuple[str, ...]
    tasks: Mapping[str, str | None]
    override: Override | None

    def task_of(self, question: str, question_type: str | None) -> tuple[str | None, str]:
        """Return the task and the type of a question; the task None means that it has none.

        Args:
            question: The text, without an instruction suffix.
            question_type: The official type, or None to derive it from the text.

        Raises:
            KeyError: The type is not in the map; the message says which is nearest.
        """
        kind = self.type_of(question) if question_type is None else question_type
        if kind not in self.tasks:
            near = did_you_mean(kind, list(self.tasks))
            raise KeyError(f"unknown question_type '{kind}'{near}")
        rule = self.override
        if rule and kind in rule.types and rule.pattern.search(question.lower()):
            return rule.task, kind
        return self.tasks[kind], kind

    def type_of(self, question: str) -> str:
        """Return the longest type that the question opens with, in whole words."""
        words = question.lower().split()
        for length in range(min(len(words), self._longest), 0, -1):
            opening = " ".join(words[:length]).rstrip("?.,!")
            if opening in self.tasks:
                return opening
        return NONE_OF_THE_ABOVE

    @cached_property
    def _longest(self) -> int:
        return max(len(kind.split()) for kind in self.tasks)


def load_question_types(replacement: Path | None = None) -> QuestionTypes:
    """Read the shipped map, changed by a file of the user's own where there is one.

    Args:
        replacement: A JSON object with any of `order`, `question_type_to_task` (entries replace
            those of the shipped map, null takes a type out) and `override` (null: none).

    Raises:
        DataError: The file is missing, not JSON or has other keys or types.
    """
    content = _read(SHIPPED)
    if replacement is not None:
        changes = _read(replacement)
        problems = _problems(changes)
        if not problems:
            types = content["question_type_to_task"] | changes.get("question_type_to_task", {})
            content |= changes | {"question_type_to_task": types}
            problems = _unknown_tasks(content)
        if problems:
            raise DataError(
                f"{replacement} is not a map of question types",
                problems=[f"{replacement}: {problem}" for problem in problems],
                hint=f"the shipped map shows the layout: {SHIPPED}",
            )
    rule = content["override"]
    return QuestionTypes(
        order=tuple(content["order"]),
        tasks=content["question_type_to_task"],
        override=None if rule is None else _override(rule),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a JSON object, holds {type_name(content)}")
    return content


def _override(rule: Mapping[str, Any]) -> Override:
    return Override(
        types=frozenset(rule["when_question_type_in"]),
        pattern=re.compile(rule["regex_on_lowercased_question"]),
        task=rule["task"],
    )


def _problems(changes: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the shape of a replacement file."""
    problems = []
    known = ["description", "provenance", "order", "question_type_to_task", "override"]
    for key in changes:
        if key not in known:
            problems.append(f"unknown key '{key}'{did_you_mean(key, known)}")
    if not _strings(changes.get("order", [])):
        problems.append("order must be a list of task names")
    types = changes.get("question_type_to_task", {})
    if not isinstance(types, dict) or not all(
        task is None or isinstance(task, str) for task in types.values()
    ):
        problems.append("question_type_to_task must be an object of task names or null")
    rule = changes.get("override")
    if rule is not None:
        try:
            if not _strings(rule["when_question_type_in"]) or not isinstance(rule["task"], str):
                raise TypeError
            re.compile(rule["regex_on_lowercased_question"])
        except re.error as error:
            problems.append(f"override: not a regular expression ({error})")
        except (TypeError, KeyError):
            problems.append(
                "override must have when_question_type_in (a list), regex_on_lowercased_question"
                " and task"
            )
    return problems


def _unknown_tasks(content: Mapping[str, Any]) -> list[str]:
    order: Sequence[str] = content["order"]
    tasks = {task for task in content["question_type_to_task"].values() if task is not None}
    if content["override"] is not None:
        tasks.add(content["override"]["task"])
    unfit = [task for task in order if not TASK_NAME.fullmatch(task)]
    return [
        *(f"task '{task}' must consist of letters, digits, '-' and '_'" for task in unfit),
        *(f"task '{task}' is not in order" for task in sorted(tasks - set(order))),
    ]


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
