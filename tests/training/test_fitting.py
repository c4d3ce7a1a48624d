"""The largest micro-batch that fits, found by trial, and what is said when none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clmoe.data.batches import Batch, collate
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.errors import MemoryExhaustedError
from clmoe.events import Event, Note, subscribe
from clmoe.recipe.schema import Train
from clmoe.training.answer_loss import AnswerLoss
from clmoe.training.fitting import is_out_of_memory, micro_batch_size, without_labels

LENGTHS = [3, 9, 5, 7]


def batch(rows: Any) -> Batch:
    samples = [
        Encoded([1] * LENGTHS[r], [IGNORE] * (LENGTHS[r] - 1) + [1], [False] * LENGTHS[r])
        for r in rows
    ]
    return collate(samples, rows=rows, pad=0, left=False)


class OneWeight(nn.Linear):
    def get_base_model(self) -> OneWeight:
        return self


class Limited(AnswerLoss):
    """A loss whose backward pass has room for so many tokens."""

    def __init__(self, room: int, error: Callable[[], Exception]) -> None:
        super().__init__(OneWeight(1, 1))
        self.room, self.error = room, error
        self.seen: list[int] = []

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        self.seen.append(labels.numel())
        if labels.numel() > self.room:
            raise self.error()
        return self.model.weight.sum() * 2

    def check(self, inputs: dict[str, Tensor], labels: Tensor) -> None:
        self.seen.append(0)


def cuda_error() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


def cpu_error() -> Exception:
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes")


def find(loss: Limited, micro_batch: object = "auto", batch_size: int = 16) -> int:
    return micro_batch_size(
        loss,
        lengths=LENGTHS,
        batch=batch,
        inputs=lambda b: {},
        settings=Train.model_validate({"micro_batch": micro_batch, "batch_size": batch_size}),
        label="color",
    )


@pytest.mark.parametrize("error", [cuda_error, cpu_error, MemoryError])
def test_halves_until_the_longest_samples_fit(error: Callable[[], Exception]) -> None:
    notes: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    loss = Limited(20, error)
    with subscribe(note):
        assert find(loss) == 2
    # The loss is checked; then all four samples, then the two longest, padded to nine tokens.
    assert loss.seen == [0, 4 * 9, 2 * 9]
    assert all(p.grad is None for p in loss.parameters())
    assert notes == ["color: 2 samples at a time fit (train.micro_batch=auto)"]
    assert find(Limited(20, error), batch_size=3) == 2
    assert find(Limited(9, error)) == 1


def test_a_single_sample_that_does_not_fit_and_another_error() -> None:
    with pytest.raises(MemoryExhaustedError):
        find(Limited(8, cuda_error))
    with pytest.raises(ValueError, match="no memory problem"):
        find(Limited(8, lambda: ValueError("no memory problem")))


def test_a_number_is_taken_as_it_is() -> None:
    loss = Limited(0, cuda_error)
    assert find(loss, 3) == 3
    assert find(loss, None) == 4
    assert find(loss, None, batch_size=2) == 2
    assert loss.seen == [0, 0, 0]


def test_what_counts_as_running_out_of_memory() -> None:
    assert is_out_of_memory(cuda_error())
    assert is_out_of_memory(cpu_error())
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_without_labels() -> None:
    assert without_labels(batch([0, 1])).labels.unique().tolist() == [IGNORE]
