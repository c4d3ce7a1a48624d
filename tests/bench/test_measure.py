"""A contender that does not fit is left out; without the two that are compared nothing is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from clmoe.bench.measure import measure
from clmoe.bench.timing import Work
from clmoe.errors import MemoryExhaustedError

CPU = torch.device("cpu")


def square() -> torch.Tensor:
    return torch.ones(8, 8) @ torch.ones(8, 8)


def too_much() -> None:
    raise torch.OutOfMemoryError("tried to allocate 9 GiB")


def found(**contenders: Callable[[], object]) -> Any:
    return measure(
        {name: {"run": Work(run)} for name, run in contenders.items()},
        reference="lora", needed="ours", samples=1, device=CPU, dtype=torch.float32,
        repeats=1, seconds=0.0, label="x",
    )  # fmt: skip


def test_whoever_does_not_fit_is_left_out() -> None:
    measured = found(lora=square, loop=too_much, ours=square)
    assert measured.left_out == ("loop",)
    assert list(measured.figures) == ["lora", "ours"]
    figures = measured.figures["ours"]["run"]
    assert figures.flops == 2 * 8**3
    assert figures.peak == 3 * 8 * 8 * 4
    assert figures.rate == pytest.approx(1 / figures.seconds.median)
    assert measured.matmul > 0


@pytest.mark.parametrize("name", ["lora", "ours"])
def test_the_two_that_are_compared_must_fit(name: str) -> None:
    with pytest.raises(MemoryExhaustedError) as raised:
        found(**{"lora": square, "ours": square, name: too_much})
    assert raised.value.exit_code == 5
    assert raised.value.hint == (
        "a smaller --batch or --tokens, --gradient-checkpointing, or fewer --layers"
    )
