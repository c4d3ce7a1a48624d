"""The largest micro-batch that fits, found by trial, and what is said when none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clmoe.data.batches import collate
from clmoe.data.prompts import IGNORE, Encoded
from clmoe.errors import MemoryExhaustedError, UsageError
from clmoe.events import Event, Note, subscribe
from clmoe.parallel.world import World
from clmoe.recipe.schema import Train
from clmoe.training import fitting
from clmoe.training.fitting import (
    check_undivided,
    is_out_of_memory,
    micro_batch_size,
    without_labels,
)

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


def find(
    loss: Limited, micro_batch: object = "auto", step: int = 16, *, whole: bool = False
) -> int:
    return micro_batch_size(
        loss,
        lengths=LENGTHS,
        step=step,
        parameters=[loss.weight],
        settings=Train.model_validate({"micro_batch": micro_batch}),
        label="color",
        whole=whole,
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


def test_a_step_that_cannot_be_divided_is_taken_whole_or_not_at_all() -> None:
    loss = Limited(36, cuda_error)
    assert find(loss, whole=True) == 16
    assert find(loss, None, whole=True) == 16  # a step has repeated samples of a small memory
    assert loss.seen == [[1, 3, 2, 0]]
    with pytest.raises(MemoryExhaustedError, match="a whole step of 16 samples does not fit"):
        find(Limited(35, cuda_error), whole=True)


@pytest.mark.parametrize("micro", [None, "auto", 16, 20])
def test_steps_that_stay_whole(micro: object) -> None:
    check_undivided(Train.model_validate({"micro_batch": micro, "batch_size": 8}), kind="vs")


def test_a_micro_batch_that_divides_a_step() -> None:
    because = "strategy.kind=vs compares all samples of a step with each other, so "
    for micro, hint in ((15, "set train.micro_batch=null, or train.batch_size to at most 7"),
                        (1, "set train.micro_batch=null")):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            check_undivided(Train(micro_batch=micro, batch_size=8), kind="vs")
        assert str(caught.value) == because + (
            "a step of 16 samples (train.batch_size, and as many from memory) cannot be taken "
            f"{micro} at a time"
        )
        assert caught.value.hint == hint


def test_processes_divide_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "world", lambda: World(size=2))
    with pytest.raises(UsageError, match="cannot be divided among 2 processes") as caught:
        check_undivided(Train(), kind="vs")
    assert caught.value.hint == "train in one process"


def test_what_counts_as_running_out_of_memory() -> None:
    assert is_out_of_memory(cuda_error())
    assert is_out_of_memory(cpu_error())
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_without_labels() -> None:
    samples: list[Any] = [Encoded([1, 2], [IGNORE, 2], [False, False])]
    batch = collate(samples, rows=[0], pad=0, left=False)
    assert without_labels(batch).labels.unique().tolist() == [IGNORE]
