"""Bytes and operations of works so small that they can be counted by hand."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from clmoe.bench.machine import count_flops
from clmoe.bench.memory import TensorBytes, peak_bytes

CPU = torch.device("cpu")


def test_the_most_alive_at_once() -> None:
    def run() -> None:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1  # 8,000
        del first  # 4,000
        third = torch.zeros(500, dtype=torch.float64)  # 8,000
        fourth = second.view(10, 100).t()  # a view
        fourth += 1  # in place
        assert third.numel() + fourth.numel() == 1500

    assert peak_bytes(run, device=CPU) == 8000


def test_what_was_there_before_does_not_count() -> None:
    weight = torch.ones(100, 100)
    assert peak_bytes(lambda: weight.t().mul_(2.0), device=CPU) == 0
    assert peak_bytes(lambda: weight @ weight, device=CPU) == 40_000


def test_tensors_that_backward_keeps_count_until_it_is_done() -> None:
    x = torch.ones(250, requires_grad=True)
    with TensorBytes() as made:
        out = (x.exp() * 2.0).sum()  # exp is kept, exp * 2 is not
        assert made.live == 1000 + 4
        out.backward()
        del out
    assert x.grad is not None
    assert made.live == x.grad.nbytes
    assert made.peak >= 2000


def test_operations_of_a_linear_and_of_attention() -> None:
    x, weight = torch.ones(3, 4, requires_grad=True), torch.ones(5, 4, requires_grad=True)
    assert count_flops(lambda: F.linear(x, weight)) == 2 * 3 * 4 * 5
    assert count_flops(lambda: F.linear(x, weight).sum().backward()) == 3 * 2 * 3 * 4 * 5
    q = torch.randn(1, 2, 16, 8, requires_grad=True)
    forward = 2 * 2 * (16 * 8 * 16 + 16 * 16 * 8)  # two heads, scores and sums

    def attention() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, q, q)

    assert count_flops(attention) == forward
    # backward: the scores again, and four products of their size
    assert count_flops(lambda: attention().sum().backward()) == forward + forward * 5 // 2
