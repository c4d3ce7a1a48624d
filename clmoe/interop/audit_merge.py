"""What a merge really did: which lambda of Eq 12 explains each expert, and how well.

    theta_t = lambda * theta_{t-1} + (1 - lambda) * phi_t

For each expert behind each router, lambda is found by least squares over the A_i and B_i of the
router's linears: with d = theta_{t-1} - phi_t and m = theta_t - phi_t it is <m, d> / <d, d>, and
the residual is ||m - lambda d|| / ||d||. A merge of factors leaves rounding only; a merge in the
space of products, or by another rule, leaves a residual that no lambda removes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from clmoe.interop.audit import FACTORS, equal_bits, tensor_slices
from clmoe.interop.opened import OpenedAdapter, check_comparable

_LAMBDA_DIGITS = 4
_FP32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Fit:
    """The lambda that explains some merged tensors best.

    Attributes:
        weight: lambda; None where theta_{t-1} and phi_t do not differ, so that any would do.
        residual: ||m - lambda d|| / ||d||; None where d is 0.
        explained: Whether what is left is no more than rounding.
    """

    weight: float | None
    residual: float | None
    explained: bool


@dataclass(frozen=True)
class KindCounts:
    """How many tensors of one kind a merge changed.

    Attributes:
        kind: As in `clmoe.interop.audit`.
        tensors: How many there are.
        differ_from_current: How many are not bit for bit those of phi_t.
        differ_from_previous: How many are not bit for bit those of theta_{t-1}.
        fit: The one lambda for all of them; None for the experts, which have one each.
    """

    kind: str
    tensors: int
    differ_from_current: int
    differ_from_previous: int
    fit: Fit | None


@dataclass(frozen=True)
class MergeAudit:
    """What a merge did.

    Attributes:
        kinds: Counts by kind of tensor; the experts first.
        experts: Router -> the fit of each of its experts.
        only_some: Tensors that not all three adapters have, which were not compared.
    """

    kinds: tuple[KindCounts, ...]
    experts: dict[str, tuple[Fit, ...]]
    only_some: tuple[str, ...]

    @property
    def weights(self) -> dict[float, list[Fit]]:
        """The explained experts by their lambda, rounded to four digits, in order."""
        found: dict[float, list[Fit]] = {}
        for fits in self.experts.values():
            for fit in fits:
                if fit.explained and fit.weight is not None:
                    # + 0.0: a lambda of -0.0 is 0.
                    found.setdefault(round(fit.weight, _LAMBDA_DIGITS) + 0.0, []).append(fit)
        return dict(sorted(found.items()))

    def sentences(self) -> list[str]:
        """The verdict, most important first."""
        found = []
        for name, attribute, so in (
            ("phi_t", "differ_from_current", "nothing was merged"),
            ("theta_{t-1}", "differ_from_previous", "nothing of phi_t is in it"),
        ):
            if not any(getattr(kind, attribute) for kind in self.kinds):
                total = sum(kind.tensors for kind in self.kinds)
                found.append(
                    f"this merged adapter equals {name}: all {total} tensors are the same bit for "
                    f"bit, {so}"
                )
            elif not getattr(self.kinds[0], attribute):
                total = self.kinds[0].tensors
                found.append(
                    f"the experts of this merged adapter equal {name}: all {total} A_i and B_i are "
                    "the same bit for bit"
                )
        fits = [fit for group in self.experts.values() for fit in group]
        unexplained = [fit for fit in fits if not fit.explained]
        if unexplained:
            found.append(
                f"no lambda explains {len(unexplained)} of {len(fits)} experts: they are no "
                "weighted mean of the factors (a merge in product space, another rule, or other "
                "adapters)"
            )
        weights = list(self.weights)
        gamma = max([0.5, *weights, *(1 - weight for weight in weights)])
        if len(found) == 0 and weights and _of_equation_10(weights, gamma):
            found.append(
                f"one lambda explains each of {len(fits)} experts, and they are those of Eq 10 "
                f"with gamma = {round(gamma, _LAMBDA_DIGITS):g}"
            )
        elif len(found) == 0:
            shown = ", ".join(f"{weight:g}" for weight in weights[:4])
            found.append(f"one lambda explains each of {len(fits)} experts: {shown}")
        return found


def audit_merge(
    previous: OpenedAdapter, *, current: OpenedAdapter, merged: OpenedAdapter
) -> MergeAudit:
    """Explain a merged adapter.

    Args:
        previous: theta_{t-1}.
        current: phi_t.
        merged: What came out.

    Raises:
        ClmoeError: The three are of different sizes, linears or bases.
    """
    three = (previous, current, merged)
    check_comparable(three)
    counts: dict[str, list[int]] = {}
    for kind, _, _, (old, new, result) in tensor_slices(three):
        tally = counts.setdefault(kind, [0, 0, 0])
        tally[0] += 1
        tally[1] += not equal_bits(result, new)
        tally[2] += not equal_bits(result, old)
    experts = {
        router: tuple(
            _fit(_factors(three, linears, expert)) for expert in range(previous.info.experts)
        )
        for router, linears in previous.groups.items()
    }
    return MergeAudit(
        kinds=tuple(
            KindCounts(
                kind,
                tensors=tally[0],
                differ_from_current=tally[1],
                differ_from_previous=tally[2],
                fit=None if kind == FACTORS else _fit(_all(three, kind)),
            )
            for kind, tally in counts.items()
        ),
        experts=experts,
        only_some=tuple(
            name
            for name in sorted({name for adapter in three for name in adapter.tensors})
            if any(name not in adapter.tensors for adapter in three)
        ),
    )


Triples = Iterator[tuple[Tensor, ...]]


def _factors(adapters: tuple[OpenedAdapter, ...], linears: tuple[str, ...], expert: int) -> Triples:
    for linear in linears:
        yield from zip(*(adapter.expert(linear, expert) for adapter in adapters), strict=True)


def _all(adapters: tuple[OpenedAdapter, ...], kind: str) -> Triples:
    return (found for other, _, _, found in tensor_slices(adapters) if other == kind)


def _fit(triples: Triples) -> Fit:
    """Least squares over all tensors at once."""
    dd = md = mm = 0.0
    sizes = [0.0, 0.0, 0.0]
    precision = _FP32
    for stored in triples:
        old, new, result = (tensor.double() for tensor in stored)
        d, m = old - new, result - new
        dd, md, mm = dd + float((d * d).sum()), md + float((m * d).sum()), mm + float((m * m).sum())
        for i, tensor in enumerate((old, new, result)):
            sizes[i] += float((tensor**2).sum())
        precision = max(precision, *(torch.finfo(tensor.dtype).eps for tensor in stored))
    rounding = precision * sum(map(sqrt, sizes))
    if dd == 0:
        return Fit(None, None, explained=sqrt(mm) <= rounding)
    weight = md / dd
    left = sqrt(max(mm - weight * md, 0.0))
    return Fit(weight, left / sqrt(dd), explained=left <= rounding)


def _of_equation_10(weights: list[float], gamma: float) -> bool:
    near = 10.0**-_LAMBDA_DIGITS
    return gamma <= 1 and all(
        min(abs(weight - gamma), abs(weight - (1 - gamma))) <= near for weight in weights
    )
