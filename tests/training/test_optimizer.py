from __future__ import annotations

import math

import pytest
import torch

from clmoe.recipe.schema import Train
from clmoe.training.optimizer import make_optimizer, rate_factor
from clmoe.training.seeds import generator, stream


def test_cosine_by_hand() -> None:
    factors = [rate_factor(s, steps=10, warmup=2, schedule="cosine") for s in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_other_schedules() -> None:
    assert rate_factor(6, steps=10, warmup=2, schedule="linear") == pytest.approx(0.5)
    assert rate_factor(6, steps=10, warmup=2, schedule="constant") == 1.0


def test_rates_reach_the_optimizer() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    settings = Train(lr=0.1, warmup=0.5)
    optimizer, schedule = make_optimizer([weight], settings=settings, steps=4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.05])


def test_streams_are_named_and_stable() -> None:
    assert stream(0, "order", "count") == stream(0, "order", "count")
    assert len({stream(s, n) for s in range(3) for n in ("a", "b", "a/b")}) == 9
    first = torch.rand(3, generator=generator(1, "x"))
    assert torch.equal(first, torch.rand(3, generator=generator(1, "x")))
