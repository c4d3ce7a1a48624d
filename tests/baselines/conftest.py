"""A task of drawn questions on the built-in base, as methods see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clmoe.baselines.base import Task
from clmoe.data.batches import collate
from clmoe.data.example import Example
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages.context import Context
from clmoe.stages.train import method_task


@pytest.fixture(scope="module")
def context(finished: Path) -> Context:
    return Context(Run.open(finished, "small"))


@pytest.fixture
def make_task(context: Context) -> Callable[..., Task]:
    """A task with a trained adapter in the model; few examples, so that tests are quick."""

    def make(name: str = "location", *, count: int = 6, previous: bool = True) -> Task:
        folder = context.run.output(Node("merge", "recognition"), "adapter")
        model = context.load(folder, trainable=True)
        context.changed()
        for parameter in model.parameters():
            parameter.grad = None
        examples = context.examples(name, "train")[:count]
        return method_task(
            context, name, model, examples=examples, previous=folder if previous else None
        )

    return make


@pytest.fixture
def logits_of() -> Callable[[Task, Example, bool], tuple[torch.Tensor, torch.Tensor]]:
    """The model's own logits for one example, and its labels, without the code under test."""

    def run(task: Task, example: Example, answers: bool) -> tuple[torch.Tensor, torch.Tensor]:
        sample = (task.encode if answers else task.prompts)([example])[0]
        batch = collate([sample], rows=[0], pad=task.pad, left=False)
        inputs = task.inputs_of([example])(batch)
        return task.model.get_base_model()(**inputs).logits[0], batch.labels[0]

    return run
