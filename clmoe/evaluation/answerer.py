"""Answering questions with a base, an adapter, and what Eq 8 and 9 need.

`clmoe eval` and `clmoe.load` both answer through this class, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clmoe.data.batches import Batch
from clmoe.data.prompts import Encoded, Prompter
from clmoe.evaluation.generate import Answer, generate_answers
from clmoe.method.task_index import TaskIndex
from clmoe.method.task_router import TaskRouter
from clmoe.method.task_shares import hard_shares, soft_shares
from clmoe.model.control import inference_gates


@dataclass(frozen=True)
class TaskGates:
    """Task router weights for each question, and the task they are for.

    Attributes:
        weights: For each router the w_T of every question, [N, n].
        tasks: The task whose w_T a question gets (with soft shares: most of).
    """

    weights: dict[str, Tensor]
    tasks: list[str]


@dataclass(frozen=True)
class Finder:
    """Finds the task of a question among the learned ones (Eq 8).

    Attributes:
        index: The task index.
        feature: Which F(x) it was made of.
        soft: Temperature of soft shares; 0: the nearest task alone.
    """

    index: TaskIndex
    feature: str
    soft: float = 0.0

    def shares(self, features: Tensor) -> Tensor:
        """How much each question, [N, d], is taken to be of each task, [N, tasks]."""
        if self.soft:
            return soft_shares(self.index.distances(features), temperature=self.soft)
        return hard_shares(self.index.predict(features), tasks=len(self.index.tasks))


@dataclass(frozen=True)
class TaskMixing:
    """What the gate of Eq 9 needs beside the instance router and the task.

    Attributes:
        tasks: The learned tasks, in order.
        routers: w_T of each.
        beta: Share of the instance router.
    """

    tasks: tuple[str, ...]
    routers: Sequence[TaskRouter]
    beta: float

    def gates(self, shares: Tensor) -> TaskGates:
        """The w_T of every question, from its shares of the tasks, [N, tasks]."""
        weights = {
            name: shares @ torch.stack([router.weights[name] for router in self.routers])
            for name in self.routers[0].weights
        }
        return TaskGates(weights, [self.tasks[int(i)] for i in shares.argmax(dim=1)])


@dataclass(frozen=True)
class Answerer:
    """Answers encoded prompts greedily.

    Attributes:
        model: The adapted model, or the bare base, in evaluation mode.
        prompter: Encodes questions for it.
        mixing: Tasks and routers; None where the instance router is all there is.
        max_new_tokens: At most so many tokens an answer.
        batch_size: Questions at a time; it changes speed, not answers.
    """

    model: Any
    prompter: Prompter
    mixing: TaskMixing | None
    max_new_tokens: int
    batch_size: int

    def answers(
        self,
        prompts: Sequence[Encoded],
        *,
        rows: Sequence[int],
        inputs: Callable[[Batch], dict[str, Tensor]],
        gates: TaskGates | None,
    ) -> Iterator[list[Answer]]:
        """Yield answers batch by batch, each question with its own gate.

        Args:
            prompts: All prompts.
            rows: Which of them to answer.
            inputs: Turns a batch into the model's inputs.
            gates: From `TaskMixing.gates` for all prompts, or None.
        """

        def mixed(chosen: list[int]) -> AbstractContextManager[None]:
            if gates is None or self.mixing is None:
                return nullcontext()
            weights = {name: weight[chosen] for name, weight in gates.weights.items()}
            return inference_gates(self.model, weights, beta=self.mixing.beta)

        return generate_answers(
            self.model,
            prompts=prompts,
            rows=rows,
            inputs=inputs,
            tokenizer=self.prompter.tokenizer,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            stops=self.prompter.stops,
            gates=mixed,
        )
