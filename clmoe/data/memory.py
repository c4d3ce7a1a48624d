"""Rehearsal memory: examples of earlier tasks, as text and picture paths, never copies of pictures.

`equal` (paper, section 5: 5,000 in all): after t tasks each keeps floor(size / t) examples; older
shares shrink by truncation. The kept order is a random one that takes the groups of a task in turn
(its source's question types), so every prefix is balanced over groups as far as they last.
`reservoir` (Vitter 1985): every example seen so far is kept with the same probability.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from clmoe.data.example import Example
from clmoe.errors import DataError

Policy = Literal["equal", "reservoir"]


@dataclass(frozen=True)
class Memory:
    """What is kept of the tasks learned so far.

    Attributes:
        examples: The kept examples; with ``equal`` task by task, each in the order of truncation.
        seen: How many examples there have been, kept or not.
        tasks: The tasks remembered, in order.
    """

    examples: tuple[Example, ...] = ()
    seen: int = 0
    tasks: tuple[str, ...] = ()

    def of(self, task: str) -> tuple[Example, ...]:
        """The kept examples of a task."""
        return tuple(example for example in self.examples if example.task == task)


def remember(
    memory: Memory, examples: Sequence[Example], *, task: str, size: int, policy: Policy, seed: int
) -> Memory:
    """Return the memory after a further task.

    Args:
        memory: The memory after the tasks before.
        examples: The training examples of the task.
        task: Its name.
        size: Examples to keep of all tasks together.
        policy: ``equal`` or ``reservoir``.
        seed: Decides which; the task's name makes the draw its own.

    Raises:
        DataError: The memory is too small to keep one example a task, or the task is in it.
    """
    tasks = (*memory.tasks, task)
    if task in memory.tasks:
        raise DataError(f"the memory holds {task} already")
    seen = memory.seen + len(examples)
    draw = random.Random(f"{seed}/{task}")
    if policy == "reservoir":
        return Memory(_reservoir(memory, examples, size=size, draw=draw), seen, tasks)
    check_room(size, tasks=len(tasks))
    share = size // len(tasks)
    kept = [example for old in memory.tasks for example in memory.of(old)[:share]]
    kept += take_in_turn(examples, draw=draw)[:share]
    return Memory(tuple(kept), seen, tasks)


def check_room(size: int, *, tasks: int) -> None:
    """Check that equal shares of a memory leave each task an example.

    Raises:
        DataError: They do not.
    """
    if size < tasks:
        raise DataError(
            f"a memory of {size} has no room for one example of each of {tasks} tasks",
            hint=f"set strategy.memory to at least {tasks}",
        )


def take_in_turn(examples: Sequence[Example], *, draw: random.Random) -> list[Example]:
    """Return the examples in a random order that takes their groups (`Example.kind`) in turn."""
    groups: dict[str | None, list[Example]] = {}
    for example in draw.sample(examples, len(examples)):
        groups.setdefault(example.kind, []).append(example)
    queues = draw.sample(list(groups.values()), len(groups))
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _reservoir(
    memory: Memory, examples: Iterable[Example], *, size: int, draw: random.Random
) -> tuple[Example, ...]:
    kept = list(memory.examples)
    for number, example in enumerate(examples, start=memory.seen):
        if len(kept) < size:
            kept.append(example)
        else:
            place = draw.randint(0, number)
            if place < size:
                kept[place] = example
    return tuple(kept)


def save_memory(memory: Memory, path: Path) -> None:
    """Write a memory as JSON lines: what it has seen, then one example a line."""
    about: dict[str, Any] = {"seen": memory.seen, "tasks": memory.tasks}
    lines = [about, *map(asdict, memory.examples)]
    text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def load_memory(path: Path) -> Memory:
    """Read a memory.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        about, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        examples = tuple(Example(**{**line, "answers": tuple(line["answers"])}) for line in lines)
        return Memory(examples, int(about["seen"]), tuple(about["tasks"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a readable memory: {error!r}") from error
