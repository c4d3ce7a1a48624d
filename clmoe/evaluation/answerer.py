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
from clmoe.evaluation.features import question_features
from clmoe.evaluation.generate import Answer, generate_answers
from clmoe.method.task_index import TaskIndex
from clmoe.method.task_router import TaskRouter
from clmoe.model.control import inference_gates


@dataclass(frozen=True)
class TaskGates:
    """Task router weights for each question, and the task they are for.

    Attributes:
        weights: For each router the w_T of every question, [N, n].
        tasks: The task whose w_T a question gets.
    """

    weights: dict[str, Tensor]
    tasks: list[str]


@dataclass(frozen=True)
class TaskMixing:
    """What the gate of Eq 9 needs beside the instance router.

    Attributes:
        tasks: The learned tasks, in order.
        routers: w_T of each.
        index: Finds the task of a question (Eq 8) among them; None where tasks are given.
        beta: Share of the instance router.
        feature: Which F(x) the index was made of.
    """

    tasks: tuple[str, ...]
    routers: Sequence[TaskRouter]
    index: TaskIndex | None
    beta: float
    feature: str

    def gates(self, features: Tensor) -> TaskGates:
        """Eq 8 for every question, then the w_T of the task it finds.

        Args:
            features: F(v) of the questions, [N, d].
        """
        assert self.index is not None
        return self._gates(self.index.predict(features))

    def gates_of(self, task: str, *, questions: int) -> TaskGates:
        """The w_T of one known task for a number of questions, without Eq 8."""
        return self._gates(torch.full((questions,), self.tasks.index(task)))

    def _gates(self, chosen: Tensor) -> TaskGates:
        weights = {
            name: torch.stack([router.weights[name] for router in self.routers])[chosen]
            for name in self.routers[0].weights
        }
        return TaskGates(weights=weights, tasks=[self.tasks[int(i)] for i in chosen])


@dataclass(frozen=True)
class Answerer:
    """Answers encoded prompts greedily.

    Attributes:
        model: The adapted model, or the bare base, in evaluation mode.
        prompter: Encodes questions for it.
        mixing: Tasks, routers and index; None where the instance router is all there is.
        max_new_tokens: At most so many tokens an answer.
        batch_size: Questions at a time; it changes speed, not answers.
    """

    model: Any
    prompter: Prompter
    mixing: TaskMixing | None
    max_new_tokens: int
    batch_size: int

    def features(self, base: Any, questions: Sequence[str]) -> Tensor:
        """F(x) of questions, [N, d], from the base with its adapters off."""
        assert self.mixing is not None
        return question_features(
            base,
            questions=[self.prompter.text_only(question) for question in questions],
            special=set(self.prompter.tokenizer.all_special_ids),
            kind=self.mixing.feature,
            batch_size=self.batch_size,
        )

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
            gates=mixed,
        )
