"""Equation 3 against the loop over experts, and one expert against PEFT's plain LoRA."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor

from clmoe.model.mixture import mixture_delta

PEFT_ASKS_OLD_NAME = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


def loop_over_experts(x: Tensor, a: Tensor, b: Tensor, gate: Tensor, scaling: float) -> Tensor:
    """The paper's sum, one expert after the other."""
    size = a.shape[0] // gate.shape[-1]
    total = torch.zeros(*x.shape[:-1], b.shape[0], dtype=x.dtype)
    for expert in range(gate.shape[-1]):
        rows = slice(expert * size, (expert + 1) * size)
        total = total + gate[..., expert : expert + 1] * ((x @ a[rows].T) @ b[:, rows].T)
    return scaling * total


@settings(max_examples=30, deadline=None)
@given(
    experts=st.integers(1, 6),
    size=st.integers(1, 4),
    wide=st.integers(1, 40),
    out=st.integers(1, 40),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_equals_the_loop_over_experts(experts, size, wide, out, batch, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, wide, generator=generator)
    a = torch.randn(experts * size, wide, generator=generator) / wide**0.5
    b = torch.randn(out, experts * size, generator=generator)
    gate = torch.randn(batch, tokens, experts, generator=generator).softmax(-1)
    got = mixture_delta(x, a=a, b=b, scaling=2.0, gate=gate)
    torch.testing.assert_close(got, loop_over_experts(x, a, b, gate, 2.0), atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_the_loop():
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(2, 3, 10, generator=generator),
        torch.randn(8, 10, generator=generator) / 3,
        torch.randn(6, 8, generator=generator) / 3,
        torch.randn(2, 3, 4, generator=generator).softmax(-1),
    ]
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    slow = [leaf.clone().requires_grad_() for leaf in leaves]
    x, a, b, gate = ours
    mixture_delta(x, a=a, b=b, scaling=2.0, gate=gate).square().sum().backward()
    loop_over_experts(*slow, 2.0).square().sum().backward()
    for mine, theirs in zip(ours, slow, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_worked_out_by_hand():
    # n = 2, r = 2: expert 0 reads x_0 and writes y_0 threefold, expert 1 reads x_1, writes y_1.
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    x, gate = torch.tensor([[2.0, 7.0]]), torch.tensor([[0.25, 0.75]])
    got = mixture_delta(x, a=a, b=b, scaling=2.0, gate=gate)
    assert got.tolist() == [[2 * 0.25 * 3 * 2, 2 * 0.75 * 5 * 7]]


def test_half_precision_input_keeps_its_dtype():
    x = torch.randn(2, 3, 16, dtype=torch.bfloat16)
    gate = torch.full((2, 3, 2), 0.5)
    a, b = torch.randn(4, 16), torch.randn(8, 4)
    assert mixture_delta(x, a=a, b=b, scaling=1.0, gate=gate).dtype is torch.bfloat16


@pytest.mark.filterwarnings(PEFT_ASKS_OLD_NAME)
def test_one_expert_is_plain_lora_outputs_and_gradients(llama, text_batch, attach):
    lora = get_peft_model(
        copy.deepcopy(llama),
        LoraConfig(r=8, lora_alpha=16, target_modules=["gate_proj", "up_proj", "down_proj"]),
    )
    ours = attach(llama, experts=1)
    weights = dict(ours.named_parameters())
    assert not any("clmoe_router" in name for name in weights)
    pairs = {
        name: weights[name.replace("lora_", "clmoe_")]
        for name, _ in lora.named_parameters()
        if "lora_" in name
    }
    theirs = dict(lora.named_parameters())
    with torch.no_grad():
        for name, mine in pairs.items():
            theirs[name].copy_(mine)
    logits, expected = ours(**text_batch).logits, lora(**text_batch).logits
    assert torch.equal(logits, expected)
    logits.square().mean().backward()
    expected.square().mean().backward()
    for name, mine in pairs.items():
        assert torch.equal(mine.grad, theirs[name].grad), name
