"""The largest micro-batch that fits, found by trial, and what is said when none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clmoe.data.batches import collate
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.errors import MemoryExhaustedError
from clmoe.events import Event, Note, subscribe
from clmoe.recipe.schema import Train
from clmoe.training.fitting import is_out_of_memory, micro_batch_size, without_labels

LENGTHS = [3, 9, 5, 7]


class Limited:
    """A loss whose samples have room for so many tokens, padded to the longest."""

    def __init__(self, room: int, error: Callable[[], Exception]) -> None:
        self.room, self.error = room, error
        self.weight = torch.ones(1, requires_grad=True)
        self.seen: list[list[int]] = []

    def __call__(self, rows: list[int]) -> Tensor:
        self.seen.append(rows)
        if len(rows) * max(LENGTHS[row] for row in rows) > self.room:
            raise self.error()
        return self.weight.sum() * 2


def cuda_error() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


def cpu_error() -> Exception:
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes")


def find(loss: Limited, micro_batch: object = "auto", step: int = 16) -> int:
    return micro_batch_size(
        loss,
        lengths=LENGTHS,
        step=step,
        parameters=[loss.weight],
        settings=Train.model_validate({"micro_batch": micro_batch}),
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
    assert loss.seen == [[1, 3, 2, 0], [1, 3]]  # all four samples, then the two longest
    assert loss.weight.grad is None
    assert notes == ["color: 2 samples at a time fit (train.micro_batch=auto)"]
    assert find(Limited(20, error), step=3) == 2
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
    assert find(loss, None, step=2) == 2
    assert loss.seen == []


def test_what_counts_as_running_out_of_memory() -> None:
    assert is_out_of_memory(cuda_error())
    assert is_out_of_memory(cpu_error())
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_without_labels() -> None:
    samples: list[Any] = [Encoded([1, 2], [IGNORE, 2], [False, False])]
    batch = collate(samples, rows=[0], pad=0, left=False)
    assert without_labels(batch).labels.unique().tolist() == [IGNORE]
