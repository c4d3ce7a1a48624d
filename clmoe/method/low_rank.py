"""Eq 12 in the space of products: a weighted sum of two low-rank products, of the same rank again.

    B A ~ lambda B1 A1 + (1 - lambda) B2 A2,    A [q, in], B [out, q]

The right side has rank 2q. Stacked, it is [lambda B1, (1-lambda) B2] [A1; A2]; a QR of each
stack leaves a 2q x 2q core, whose q largest singular values are kept (the best approximation of
rank q, Eckart and Young 1936). The [out, in] product is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankSum:
    """The best rank-q factors of a weighted sum.

    Attributes:
        a: [q, in]. Balanced: row k of `a` and column k of `b` have the same length.
        b: [out, q].
        norm: Squared Frobenius norm of the whole sum.
        discarded: Squared Frobenius norm of what rank q cannot hold of it.
    """

    a: Tensor
    b: Tensor
    norm: float
    discarded: float


def low_rank_sum(a1: Tensor, *, b1: Tensor, a2: Tensor, b2: Tensor, weight: float) -> LowRankSum:
    """The best rank-q factors of `weight * b1 @ a1 + (1 - weight) * b2 @ a2`, in the input dtype.

    Args:
        a1: [q, in].
        b1: [out, q].
        a2: [q, in].
        b2: [out, q].
        weight: lambda.
    """
    rank = a1.shape[0]
    q_b, r_b = torch.linalg.qr(torch.cat([weight * b1, (1 - weight) * b2], dim=1))
    q_a, r_a = torch.linalg.qr(torch.cat([a1, a2], dim=0).T)
    u, s, vh = torch.linalg.svd(r_b.double() @ r_a.double().T)
    root = s[:rank].sqrt()
    # Narrow layers (in or out below q) have fewer than q singular values: the rest is zero.
    missing = rank - len(root)
    left = (u[:, : len(root)] * root).to(b1.dtype)
    right = (vh[: len(root)] * root[:, None]).to(a1.dtype)
    b = torch.nn.functional.pad(q_b @ left, (0, missing))
    a = torch.nn.functional.pad(right @ q_a.T, (0, 0, 0, missing))
    energy = s**2
    return LowRankSum(a=a, b=b, norm=float(energy.sum()), discarded=float(energy[rank:].sum()))


def product_norms(a1: Tensor, *, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[float, float]:
    """Squared Frobenius norms of `b1 @ a1 - b2 @ a2` and of `b2 @ a2`, without the products.

    With Gram matrices in float64: ||BA||^2 = trace(B^T B A A^T).
    """
    a = torch.cat([a1, a2], dim=0).double()
    b = torch.cat([b1, -b2], dim=1).double()
    gram_a, gram_b = a @ a.T, b.T @ b
    rank = a1.shape[0]
    difference = float((gram_a * gram_b).sum())
    second = float((gram_a[rank:, rank:] * gram_b[rank:, rank:]).sum())
    return max(difference, 0.0), second
