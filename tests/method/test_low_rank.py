"""The low-rank sum against the SVD of the full product, which it must never form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clmoe.method.low_rank import low_rank_sum, product_norms


def factors(seed: int, rank: int, wide: int, tall: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, wide), (tall, rank), (rank, wide), (tall, rank))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 999),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0.05, 0.95),
)
def test_equals_the_truncated_svd_of_the_product(
    seed: int, rank: int, wide: int, tall: int, weight: float
) -> None:
    a1, b1, a2, b2 = factors(seed, rank, wide, tall)
    whole = (weight * b1 @ a1 + (1 - weight) * b2 @ a2).double()
    u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    found = low_rank_sum(a1, b1=b1, a2=a2, b2=b2, weight=weight)
    assert found.a.shape == (rank, wide)
    assert found.b.shape == (tall, rank)
    error = (found.b.double() @ found.a.double() - whole).norm()
    assert float(error) == pytest.approx(float((best - whole).norm()), abs=2e-4)
    assert found.discarded == pytest.approx(float((s[rank:] ** 2).sum()), abs=1e-3)
    assert found.norm == pytest.approx(float((s**2).sum()), rel=1e-4)
    # Balanced: each pair of a row of A and a column of B shares the singular value equally.
    assert torch.allclose(found.a.norm(dim=1), found.b.norm(dim=0), atol=2e-3)


def test_a_sum_of_rank_q_is_kept_exactly() -> None:
    a1, b1, _, _ = factors(1, 3, 9, 11)
    found = low_rank_sum(a1, b1=b1, a2=a1, b2=3 * b1, weight=0.25)
    assert torch.allclose(found.b @ found.a, 2.5 * b1 @ a1, atol=1e-4)
    assert found.discarded == pytest.approx(0, abs=1e-6)


def test_averaging_factors_is_not_averaging_products() -> None:
    a, b, _, _ = factors(2, 2, 6, 5)
    product = low_rank_sum(a, b1=b, a2=-a, b2=-b, weight=0.5)
    assert torch.allclose(product.b @ product.a, b @ a, atol=1e-5)
    assert torch.equal(0.5 * (a + -a), torch.zeros_like(a))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.floats(1e-4, 1))
def test_norms_without_the_product(seed: int, scale: float) -> None:
    a1, b1, a2, b2 = factors(seed, 3, 7, 8)
    a1, b1 = a2 + scale * a1, b2 + scale * b1
    first, second = b1.double() @ a1.double(), b2.double() @ a2.double()
    difference, norm = product_norms(a1, b1=b1, a2=a2, b2=b2)
    assert difference == pytest.approx(float((first - second).square().sum()), rel=1e-5)
    assert norm == pytest.approx(float(second.square().sum()))
    assert product_norms(a2, b1=b2, a2=a2, b2=b2)[0] == pytest.approx(0, abs=1e-9)
