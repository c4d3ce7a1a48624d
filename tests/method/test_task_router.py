"""Eq 6 by hand and against a slow version; top K; files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clmoe.errors import ClmoeError
from clmoe.method.task_router import (
    TaskRouter,
    TaskRouterAccumulator,
    build_task_router,
    load_task_router,
    save_task_router,
    top_experts,
)

A, B = "layers.2.mlp", "layers.10.mlp"


def one_hot(*experts: int, n: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(experts), n).float()


def build(accumulator: TaskRouterAccumulator, **options) -> TaskRouter:
    return build_task_router(
        accumulator, **{"top_k": 1, "scope": "per-layer", "tokens": "prompt"} | options
    )


def test_a_long_sample_counts_as_much_as_a_short_one() -> None:
    accumulator = TaskRouterAccumulator()
    gates = torch.stack([one_hot(0, 1, 1, 1), one_hot(2, 0, 0, 0)])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    accumulator.add(A, gates=gates, mask=mask)
    # sample 1: (1/4, 3/4, 0); sample 2: (0, 0, 1)
    weights = accumulator.result()[A]
    assert weights.tolist() == [0.125, 0.375, 0.5]
    assert weights.dtype == torch.float64
    router = build(accumulator)
    assert (router.samples, router.token_count) == (2, 5)
    assert router.experts == {A: (2,)}
    assert router.gaps == {A: 0.125}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4))
def test_equals_a_slow_version_whatever_the_batches(seed: int, samples: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gates = torch.rand(samples, 6, 4, generator=generator).softmax(dim=-1)
    mask = torch.rand(samples, 6, generator=generator) < 0.5
    mask[:, 0] = True
    accumulator = TaskRouterAccumulator()
    for start in range(0, samples, size):
        rows = slice(start, start + size)
        accumulator.add(A, gates=gates[rows], mask=mask[rows])
    slow = [0.0] * 4
    for i in range(samples):
        tokens = [t for t in range(6) if mask[i, t]]
        for e in range(4):
            slow[e] += sum(float(gates[i, t, e]) for t in tokens) / len(tokens) / samples
    assert accumulator.result()[A].tolist() == pytest.approx(slow, rel=1e-12)


def test_sums_are_float64() -> None:
    accumulator = TaskRouterAccumulator()
    gates = torch.full((1000, 1, 2), 0.1)
    for _ in range(50):
        accumulator.add(A, gates=gates, mask=torch.ones(1000, 1))
    assert accumulator.result()[A].tolist() == [float(torch.tensor(0.1))] * 2


def test_padding_may_hold_anything() -> None:
    gates = torch.stack([one_hot(0, 1)])
    gates[0, 1] = torch.nan
    accumulator = TaskRouterAccumulator()
    accumulator.add(A, gates=gates, mask=torch.tensor([[True, False]]))
    assert accumulator.result()[A].tolist() == [1, 0, 0]


def test_a_sample_without_a_selected_token_is_named() -> None:
    accumulator = TaskRouterAccumulator()
    gates, mask = torch.stack([one_hot(0), one_hot(1)]), torch.tensor([[1], [0]])
    with pytest.raises(ClmoeError, match="no token is selected for sample q17"):
        accumulator.add(A, gates=gates, mask=mask, samples=["q16", "q17"])
    with pytest.raises(ClmoeError, match="sample number 1 of its batch"):
        accumulator.add(A, gates=gates, mask=mask)


def test_bad_gates_are_refused() -> None:
    accumulator = TaskRouterAccumulator()
    with pytest.raises(ClmoeError, match=f"a gate of {A} is not a finite number"):
        accumulator.add(A, gates=torch.full((1, 1, 2), torch.inf), mask=torch.ones(1, 1))
    with pytest.raises(ClmoeError, match=r"must be \[batch, tokens, n\]"):
        accumulator.add(A, gates=torch.ones(1, 2), mask=torch.ones(1, 1))
    with pytest.raises(ClmoeError, match="no gate was recorded"):
        accumulator.result()
    accumulator.add(A, gates=torch.ones(1, 1, 2), mask=torch.ones(1, 1))
    with pytest.raises(ClmoeError, match="had 2 experts, now 3"):
        accumulator.add(A, gates=torch.ones(1, 1, 3), mask=torch.ones(1, 1))
    accumulator.add(B, gates=torch.ones(2, 1, 2), mask=torch.ones(2, 1))
    with pytest.raises(ClmoeError, match="different numbers of samples"):
        accumulator.result()


def test_ties_go_to_the_lower_index() -> None:
    top = top_experts(torch.tensor([0.25, 0.25, 0.25, 0.25]), k=2)
    assert (top.experts, top.gap) == ((0, 1), 0.0)
    top = top_experts(torch.tensor([0.1, 0.3, 0.2, 0.3, 0.1], dtype=torch.float64), k=3)
    assert top.experts == (1, 2, 3)
    assert top.gap == pytest.approx(0.1)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(1, 9))
def test_top_experts_equal_a_slow_version(weights: list[int], k: int) -> None:
    chosen = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:k]
    top = top_experts(torch.tensor(weights, dtype=torch.float64), k=k)
    assert top.experts == tuple(sorted(chosen))
    ranked = sorted(weights, reverse=True)
    assert top.gap == (None if k >= len(weights) else ranked[k - 1] - ranked[k])


def test_k_above_n_takes_all_and_k_below_one_is_refused() -> None:
    assert top_experts(torch.ones(3), k=9).experts == (0, 1, 2)
    with pytest.raises(ClmoeError, match="must be at least 1"):
        top_experts(torch.ones(3), k=0)


def filled() -> TaskRouterAccumulator:
    accumulator = TaskRouterAccumulator()
    accumulator.add(A, gates=one_hot(0, 0, 1)[:, None], mask=torch.ones(3, 1))
    accumulator.add(B, gates=one_hot(2, 2, 2)[:, None], mask=torch.ones(3, 1))
    return accumulator


def test_global_scope_is_the_mean_over_routers() -> None:
    apart, together = build(filled()), build(filled(), scope="global")
    assert apart.experts == {A: (0,), B: (2,)}
    assert together.experts == {A: (2,), B: (2,)}
    assert together.weights[A].tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 2])
    assert together.weights[A].equal(together.weights[B])


def test_files_round_trip_and_are_the_same_bytes(tmp_path: Path) -> None:
    router = build(filled(), top_k=2)
    for name in ("one", "two"):
        save_task_router(router, folder=tmp_path / name)
    again = load_task_router(tmp_path / "one")
    assert list(again.weights) == [A, B]
    assert all(again.weights[name].equal(router.weights[name]) for name in router.weights)
    assert again.experts == router.experts
    assert again.gaps == router.gaps
    assert (again.top_k, again.scope, again.samples) == (2, "per-layer", 3)
    assert (again.tokens, again.token_count) == ("prompt", 3)
    for file in ("task_router.safetensors", "task_router.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "experts", "scope", "router", "absent"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    save_task_router(build(filled()), folder=tmp_path)
    tensors, details = tmp_path / "task_router.safetensors", tmp_path / "task_router.json"
    content = json.loads(details.read_text())
    message = "is not a task router"
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-4])
        message = "is not a readable task router"
    elif damage == "absent":
        details.unlink()
        message = "is not a readable task router"
    elif damage == "experts":
        content["routers"][A]["experts"] = [1]
    elif damage == "scope":
        content["scope"] = "per-token"
    else:
        del content["routers"][B]
        message = f"{B} is only in"
    if damage != "absent":
        details.write_text(json.dumps(content))
    with pytest.raises(ClmoeError, match=message) as caught:
        load_task_router(tmp_path)
    assert caught.value.hint == "run `clmoe route` again"
