"""The graph of stages: which nodes a recipe asks for, and what each reads.

`prepare -> for each task t: train (phi_t) -> route (w_T, E_t) -> merge (theta_t) -> index (R_t)
-> eval (row t of the accuracy matrix) -> report`. Declarations only: nothing here runs a stage.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from clmoe.errors import UsageError, did_you_mean
from clmoe.recipe.fingerprint import recipe_part
from clmoe.recipe.schema import Recipe
from clmoe.recipe.strategy_keys import unused_defaults

STAGE_VERSIONS = {
    "prepare": 1,
    "train": 1,
    "route": 1,
    "merge": 1,
    "index": 1,
    "eval": 1,
    "report": 2,
}
BASE_ROW = "base"
ALL_TASKS = "all"
_READS_BASE = ("train", "route", "index", "eval")
_GATE_KEYS = ("eval.beta", "eval.oracle_task")


@dataclass(frozen=True, slots=True)
class Node:
    """One thing to compute.

    `Node("train", "location")` and `Node("eval", "color", after="location")` are enough to name
    one; a plan fills in the position.

    Attributes:
        stage: One of `clmoe.recipe.STAGES`.
        task: Its task; for eval the task whose questions are answered; `all` for joint training.
        after: For eval: the newest task learned, `base` for row 0, `all` after joint training.
        position: Place of the task (for eval: of `after`) in the order, from 1; 0 for `base`.
    """

    stage: str
    task: str | None = None
    after: str | None = None
    position: int | None = None

    @property
    def label(self) -> str:
        """The node's name and its path in a run's folder, e.g. `train/01-recognition`."""
        if self.task is None:
            return self.stage
        assert self.position is not None, "a plan gives a node its position"
        if self.stage == "eval":
            return f"eval/after-{self.position:02d}-{self.after}/{self.task}"
        return f"{self.stage}/{self.position:02d}-{self.task}"


@dataclass(frozen=True, slots=True)
class Read:
    """An input: an output of another node, and what it is to the reader.

    The role is in the reader's fingerprint; the node's label, which has its position, is not.
    """

    node: Node
    output: str
    role: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe asks for over tasks in the order in which they are learned."""

    recipe: Recipe
    tasks: tuple[str, ...]

    @property
    def merges(self) -> bool:
        """Whether theta_t is the result of a merge, rather than phi_t."""
        return self.recipe.merge.rule == "roles" and not self.recipe.protocol.joint

    @property
    def per_task(self) -> bool:
        """Whether every task has an adapter of its own, which the task index chooses."""
        return self.recipe.protocol.per_task and not self.recipe.protocol.joint

    @property
    def indexes(self) -> bool:
        """Whether answering needs the task index: for the task router, or to choose an adapter."""
        return self.soft_gates or self.per_task

    @property
    def soft_gates(self) -> bool:
        """Whether answering mixes in the task router (Eq 9): beta < 1 and there are gates."""
        recipe = self.recipe
        one = recipe.adapter.experts == 1 or recipe.protocol.joint
        return recipe.eval.beta < 1 and not one

    @property
    def routes(self) -> bool:
        """Whether anything reads the task router."""
        return self.recipe.adapter.experts > 1 and (self.merges or self.soft_gates)

    def nodes(self) -> list[Node]:
        """Every node, in an order in which each comes after what it reads."""
        last, every = len(self.tasks), self.recipe.eval.rows == "all"
        found = [Node("prepare"), *(self.row(0) if every else [])]
        if self.recipe.protocol.joint:
            found += [self.train(0), *self.row(last)]
        else:
            for t in range(1, last + 1):
                found += [*self.learning(t), *(self.row(t) if every or t == last else [])]
        return [*found, Node("report")]

    def learning(self, t: int) -> list[Node]:
        """train, route, merge and index of task t, those that the recipe asks for."""
        found = [self.train(t)]
        if self.routes:
            found.append(self._of_task("route", t))
        if self.merges:
            found.append(self._of_task("merge", t))
        if self.indexes:
            found.append(self._of_task("index", t))
        return found

    def row(self, t: int) -> list[Node]:
        """The cells of row t: the tasks seen by then (row 0: all), in order."""
        seen = self.tasks if t == 0 else self.tasks[:t]
        return [self.cell(t, task) for task in seen]

    def cell(self, t: int, task: str) -> Node:
        """One cell of row t; `task` need not be learned yet."""
        after = BASE_ROW if t == 0 else self.tasks[t - 1]
        if self.recipe.protocol.joint and t:
            after = ALL_TASKS
        return Node("eval", task, after, t)

    def train(self, t: int) -> Node:
        """The training of task t; with protocol.joint the only one, of all tasks."""
        return Node("train", ALL_TASKS, None, 0) if t == 0 else self._of_task("train", t)

    def theta(self, t: int) -> Node | None:
        """The node whose `adapter` is theta_t; None before any task."""
        if t == 0:
            return None
        if self.recipe.protocol.joint:
            return self.train(0)
        return self._of_task("merge" if self.merges else "train", t)

    def learned(self, node: Node) -> tuple[str, ...]:
        """The tasks that the adapter of an eval node, or of a training, has learned."""
        assert node.position is not None
        if node.task == ALL_TASKS:
            return self.tasks
        return self.tasks[: node.position]

    def locate(self, node: Node) -> Node:
        """The node with its position.

        Raises:
            UsageError: There is no such task.
        """
        if node.task is None or node.position is not None:
            return node
        if node.stage == "eval":
            if node.after == BASE_ROW:
                return self.cell(0, self._known(node.task))
            if node.after == ALL_TASKS:
                return self.cell(len(self.tasks), self._known(node.task))
            return self.cell(self._position(str(node.after)), self._known(node.task))
        if node.task == ALL_TASKS and self.recipe.protocol.joint:
            return self.train(0)
        return self._of_task(node.stage, self._position(node.task))

    def reads(self, node: Node, *, cells: Container[str] = ()) -> list[Read]:
        """The outputs of other nodes that a node reads.

        Args:
            node: A located node.
            cells: For `report`: the labels of the nodes that it may read.
        """
        t = node.position or 0
        if node.stage == "prepare":
            return []
        if node.stage == "report":
            rows = [self.cell(t, task) for t in range(len(self.tasks) + 1) for task in self.tasks]
            found = [Read(c, "samples", f"cell:{c.label}") for c in rows if c.label in cells]
            newest = max((read.node.position or 0 for read in found), default=0)
            for made in (n for place in range(1, newest + 1) for n in self.learning(place)):
                if made.stage in ("route", "merge") and made.label in cells:
                    output = "router" if made.stage == "route" else "merge"
                    found.append(Read(made, output, made.label))
            return found
        if node.stage == "train" and node.task == ALL_TASKS:
            return [self._data(task, "train") for task in self.tasks]
        assert node.task is not None
        if node.stage == "train":
            before = [] if self.per_task else self._theta(t - 1, "start")
            if before and self.recipe.strategy.kind != "none":
                before.append(Read(self.train(t - 1), "strategy", "strategy"))
            return [self._data(node.task, "train"), *before]
        if node.stage == "route":
            return [
                self._data(node.task, "train"),
                Read(self._of_task("train", t), "adapter", "adapter"),
            ]
        if node.stage == "index":
            return [self._data(node.task, "train")]
        if node.stage == "merge":
            own = Read(self._of_task("train", t), "adapter", "adapter")
            return [own, *self._theta(t - 1, "previous"), *self._each("route", "router", t)]
        assert node.stage == "eval"
        reads = [self._data(node.task, self.recipe.eval.split)]
        if self.per_task:
            reads += self._each("train", "adapter", t)
        else:
            reads += self._theta(t, "adapter")
        if t and self.recipe.strategy.kind == "vqacl":
            reads.append(Read(self.train(t), "strategy", "shown"))
        if self.soft_gates:
            reads += self._each("route", "router", t)
        if self.indexes and self._uses_index(node):
            reads += self._each("index", "index", t)
        return reads

    def reads_base(self, node: Node) -> bool:
        """Whether the base model is an input."""
        return node.stage in _READS_BASE

    def part(self, node: Node) -> dict[str, Any]:
        """The values of the recipe that this node's result depends on.

        It is what the stage's keys declare, with some refinements: the order of tasks counts up
        to the node's own (one adapter a task knows its own task alone); the keys of other methods
        stand at their defaults, and without a method there are none; the first task has nothing to
        merge (theta_1 = phi_1), whatever gamma is; a row of the matrix depends on gates only where
        it has them, and the choice of an adapter has no softness.
        """
        part = recipe_part(self.recipe, stage=node.stage)
        if node.stage == "train":
            own = (str(node.task),) if self.per_task else self.learned(node)
            part["protocol.order"] = list(own)
            kind = self.recipe.strategy.kind
            part |= unused_defaults(kind)
            if kind == "none":
                part = {key: v for key, v in part.items() if not key.startswith("strategy.")}
        if node.stage == "merge" and node.position == 1:
            part = {"merge.rule": part["merge.rule"]}
        if node.stage == "eval":
            if node.position == 0:
                part = {key: value for key, value in part.items() if key not in _GATE_KEYS}
            if not self.indexes or not self._uses_index(node):
                part = {key: v for key, v in part.items() if not key.startswith("index.")}
            if not self.soft_gates:
                part.pop("index.soft", None)
            if "index.noise" not in part:
                part.pop("eval.seed", None)
            if node.position == 0:
                part.pop("protocol.per_task", None)
        return part

    def _uses_index(self, node: Node) -> bool:
        known = self.recipe.eval.oracle_task and node.task in self.learned(node)
        return node.position != 0 and not known

    def _data(self, task: str, split: str) -> Read:
        return Read(Node("prepare"), f"{task}/{split}", f"data:{task}")

    def _theta(self, t: int, role: str) -> list[Read]:
        node = self.theta(t)
        return [] if node is None else [Read(node, "adapter", role)]

    def _each(self, stage: str, output: str, t: int) -> list[Read]:
        if stage == "route" and not self.routes:
            return []
        return [
            Read(self._of_task(stage, place), output, f"{output}:{self.tasks[place - 1]}")
            for place in range(1, t + 1)
        ]

    def _of_task(self, stage: str, t: int) -> Node:
        return Node(stage, self.tasks[t - 1], None, t)

    def _position(self, task: str) -> int:
        return self.tasks.index(self._known(task)) + 1

    def _known(self, task: str) -> str:
        if task not in self.tasks:
            raise UsageError(
                f"there is no task {task!r}{did_you_mean(task, self.tasks)}",
                hint=f"the tasks are, in order: {', '.join(self.tasks)}",
            )
        return task


def order_tasks(prepared: Sequence[str], *, order: str | Sequence[str]) -> tuple[str, ...]:
    """The prepared tasks in the order of `protocol.order`.

    Raises:
        UsageError: A list that does not name every prepared task once.
    """
    if order == "forward":
        return tuple(prepared)
    if order == "reverse":
        return tuple(reversed(prepared))
    problems = [
        f"{name!r} is not prepared{did_you_mean(name, prepared)}"
        for name in order
        if name not in prepared
    ]
    problems += [f"{name!r} is missing" for name in prepared if name not in order]
    if problems:
        raise UsageError(
            f"protocol.order must name every prepared task once: {'; '.join(problems)}",
            hint=f"the prepared tasks are {','.join(prepared)}; data.tasks chooses among them",
        )
    return tuple(order)


def node_command(node: Node, *, run: str | None = None) -> str:
    """The command that computes a node, e.g. `clmoe train --task location`.

    Args:
        node: The node.
        run: The run's name, where it is not the current one.
    """
    command = f"clmoe {node.stage}"
    if node.stage == "eval" and node.after is not None:
        command += f" --after {node.after}"
    elif node.task is not None and node.task != ALL_TASKS:
        command += f" --task {node.task}"
    return command if run is None else f"{command} --run {run}"
