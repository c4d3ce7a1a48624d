"""One protocol for continual-learning methods: before a task, a batch's loss, after a task, state.

`Strategy` itself is plain sequential tuning (Vanilla). A method overrides what it adds; what it
keeps for later tasks is saved in a folder of the run beside the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clmoe.data.batches import Batch, by_length, collate
from clmoe.data.example import Example
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.answer_loss import Answered, AnswerLoss

WITHOUT_GRADIENTS = 4
"""How many times the samples of a step fit where no gradient is needed."""
WITH_SHARDS = ("none", "er")
"""Methods (`strategy.kind`) that ask of the model no more than its loss in a training step: they
work where parameters are sharded. The others read parameters, put embeddings in, or run the model
by itself."""


@dataclass(frozen=True)
class Task:
    """A task as a method sees it.

    Attributes:
        name: Its name.
        model: The PEFT model being trained.
        examples: Its training examples.
        previous: Folder of the adapter that the training starts from; None for the first task.
        encode: Encodes examples for training, one question each.
        prompts: Encodes the prompts of examples, without answers.
        inputs_of: From examples, a function from a batch over them to the model's inputs.
        pad: Id of the padding token.
        image_token_id: Id of the token that stands for a picture's feature.
        batch_size: Samples of a step.
        seed: Of whatever a method draws.
    """

    name: str
    model: Any
    examples: Sequence[Example]
    previous: Path | None
    encode: Callable[[Sequence[Example]], list[Encoded]]
    prompts: Callable[[Sequence[Example]], list[Encoded]]
    inputs_of: Callable[[Sequence[Example]], Callable[[Batch], dict[str, Tensor]]]
    pad: int
    image_token_id: int
    batch_size: int
    seed: int

    def batches(
        self, examples: Sequence[Example], samples: Sequence[Encoded], *, size: int
    ) -> Iterator[tuple[dict[str, Tensor], Batch]]:
        """Inputs and batch of encoded examples, ``size`` at a time; rows point into them."""
        build = self.inputs_of(examples)
        for rows in by_length([len(s.input_ids) for s in samples], batch_size=size):
            batch = collate([samples[r] for r in rows], rows=rows, pad=self.pad, left=False)
            yield build(batch), batch


@dataclass(frozen=True)
class Part:
    """One micro-batch of a global batch.

    Attributes:
        batch: The micro-batch, padded.
        replayed: Which of its samples come from memory, [batch] bool.
        rows: Samples of the whole global batch.
        tokens: Its supervised tokens.
        replayed_tokens: Those of them that are replayed.
        replayed_rows: Replayed samples of the whole global batch.
        first_replayed: Position of the first sample of memory; row - this is its place there.
    """

    batch: Batch
    replayed: Tensor
    rows: int
    tokens: int
    replayed_tokens: int
    replayed_rows: int
    first_replayed: int


class Strategy:
    """Sequential tuning: the loss of Eq 4 over a batch, nothing kept.

    Attributes:
        whole_steps: Whether the loss compares the samples of a step with each other, so that parts
            of a step do not add up: then one process takes all of them at a time.
    """

    whole_steps: ClassVar[bool] = False

    def __init__(self, settings: Settings, *, kept: Path | None = None) -> None:
        """Begin with what was kept after the task before.

        Args:
            settings: The recipe's ``strategy`` section.
            kept: The folder that `save` wrote; None for the first task.
        """
        self.settings = settings

    @property
    def memory(self) -> Sequence[Example]:
        """The examples to replay; empty for methods without memory."""
        return ()

    def before_task(self, task: Task) -> None:
        """Get ready; the model is that of the task before."""

    def prepared(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take the trained parameters, by name, as the optimizer moves them from now on."""

    def before_batch(self, model: Any, inputs: dict[str, Tensor], part: Part) -> None:
        """Look at a micro-batch before the model being trained does."""

    def extend(
        self, inputs: dict[str, Tensor], labels: Tensor, part: Part
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Change what the model is shown; labels as `AnswerLoss` takes them."""
        return inputs, labels

    def loss(self, answered: Answered, part: Part) -> Tensor:
        """A micro-batch's part of the loss: parts add up to that of the global batch."""
        return answered.total() / part.tokens

    def penalty(self) -> Tensor | None:
        """What is added to the loss of a global batch, whatever its samples."""
        return None

    def after_step(self) -> None:
        """Update what moves along with the training."""

    def after_task(self, task: Task) -> None:
        """Compute what later tasks need; the model is phi_t in evaluation mode."""

    def moving(self) -> dict[str, Tensor]:
        """What changes from step to step, for the training's checkpoint."""
        return {}

    def restore(self, moving: dict[str, Tensor]) -> None:
        """Take `moving` back from a checkpoint."""

    def save(self, folder: Path) -> None:
        """Write what is kept into a new folder."""

    def extra_bytes(self) -> dict[str, int]:
        """Memory beyond the adapter and its optimizer: what is held, and how many bytes."""
        return {}


class StrategyLoss(AnswerLoss):
    """A model whose forward is a method's loss over a micro-batch."""

    def __init__(self, model: Any, strategy: Strategy) -> None:
        """Wrap an adapted model; its parameters are used, not copied."""
        super().__init__(model)
        self.strategy = strategy

    def forward(self, inputs: dict[str, Tensor], labels: Tensor, part: Part) -> Tensor:  # type: ignore[override]
        """Return the method's loss; see `AnswerLoss.forward` for inputs and labels."""
        self.strategy.before_batch(self.model, inputs, part)
        inputs, labels = self.strategy.extend(inputs, labels, part)
        return self.strategy.loss(self.answered(inputs, labels), part)


def part_of(
    batch: Batch, *, rows: Sequence[int], supervised: Sequence[int], first_replayed: int
) -> Part:
    """Return a micro-batch of the global batch that has these rows.

    Args:
        batch: The micro-batch.
        rows: All rows of the global batch.
        supervised: Supervised tokens of every sample, by row.
        first_replayed: Position of the first sample of memory.
    """
    old = [row for row in rows if row >= first_replayed]
    return Part(
        batch=batch,
        replayed=torch.tensor([row >= first_replayed for row in batch.rows]),
        rows=len(rows),
        tokens=sum(supervised[row] for row in rows),
        replayed_tokens=sum(supervised[row] for row in old),
        replayed_rows=len(old),
        first_replayed=first_replayed,
    )


def prompt_tokens(batch: Batch) -> Tensor:
    """Tokens that are neither padding nor answer, [batch, tokens] bool."""
    return batch.attention_mask.bool() & (batch.labels == IGNORE)


def bytes_of(tensors: dict[str, Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())
