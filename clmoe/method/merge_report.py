"""What a merge did, measured on the tensors it wrote; and the merges that did nothing.

A merge that changes nothing is the classic defect of released code (keys that never match), so
it is an error here, never a line in a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.method.expert_roles import ExpertRoles, Role

_INTEGER = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@dataclass(frozen=True)
class TensorCounts:
    """How many tensors there are, and how many are not bit for bit those of a source.

    Attributes:
        total: How many were written.
        differ_from_current: How many differ from phi_t.
        differ_from_previous: How many differ from theta_{t-1}; None for the first task.
    """

    total: int
    differ_from_current: int
    differ_from_previous: int | None


@dataclass(frozen=True)
class ExpertChange:
    """What happened to one expert behind one router, over all linears of that router.

    Attributes:
        expert: Its index.
        role: Its role in Eq 10.
        weight: Its lambda.
        from_previous: Frobenius norm of theta_t - theta_{t-1}, over that of theta_{t-1}. Of the
            factors, or of the products where the merge was in that space. None where the divisor
            is 0 and the difference is not.
        from_current: The same versus phi_t.
        discarded: Space "product" only: share (of the Frobenius norm) that its rank cannot hold.
    """

    expert: int
    role: Role
    weight: float
    from_previous: float | None
    from_current: float | None
    discarded: float | None


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        first_task: True if there was nothing to merge: theta_1 = phi_1, copied byte for byte.
        gamma: The momentum.
        space: "factors" or "product".
        router_rule: "keep", "momentum" or "previous".
        extra_rule: "keep" or "momentum".
        factors: Counts of the experts' tensors A and B.
        routers: Counts of the router tensors.
        extras: Counts of all other tensors.
        changes: Of each router, its experts. Empty for the first task.
    """

    first_task: bool
    gamma: float
    space: str
    router_rule: str
    extra_rule: str
    factors: TensorCounts
    routers: TensorCounts
    extras: TensorCounts
    changes: dict[str, tuple[ExpertChange, ...]]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain lists, dictionaries, numbers and strings, for JSON."""
        return asdict(self)


class ExpertTally:
    """Adds up squared norms of one router's experts, linear by linear."""

    def __init__(self, experts: int) -> None:
        """Starts at zero for n experts."""
        zero = torch.zeros(experts, dtype=torch.float64)
        self.to_previous, self.to_current = zero.clone(), zero.clone()
        self.previous, self.current = zero.clone(), zero.clone()
        self.norm, self.discarded = zero.clone(), zero.clone()

    def changes(self, roles: ExpertRoles, *, product: bool) -> tuple[ExpertChange, ...]:
        """The finished numbers of each expert."""
        return tuple(
            ExpertChange(
                expert=i,
                role=role,
                weight=weight,
                from_previous=_ratio(self.to_previous[i], below=self.previous[i]),
                from_current=_ratio(self.to_current[i], below=self.current[i]),
                discarded=_ratio(self.discarded[i], below=self.norm[i]) if product else None,
            )
            for i, (role, weight) in enumerate(zip(roles.roles, roles.lambdas, strict=True))
        )


class TensorTally:
    """Counts tensors that differ from their sources."""

    def __init__(self) -> None:
        """Starts at zero."""
        self._total = self._current = self._previous = 0

    def add(self, merged: Tensor, *, previous: Tensor, current: Tensor) -> None:
        """Counts one tensor."""
        self._total += 1
        self._current += not same_bits(merged, current)
        self._previous += not same_bits(merged, previous)

    def counts(self) -> TensorCounts:
        """The finished counts."""
        return TensorCounts(self._total, self._current, self._previous)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal bit for bit (-0.0 is not 0.0)."""
    kind = _INTEGER[first.element_size()]
    return torch.equal(first.view(kind), second.view(kind))


def refuse_empty_merge(
    counts: TensorCounts, *, roles: Mapping[str, ExpertRoles], gamma: float, current: Path
) -> None:
    """Refuses a merge whose result is one of its sources.

    Raises:
        ClmoeError: All experts equal phi_t; or all equal theta_{t-1} and gamma is not 1.
    """
    like_current = counts.differ_from_current == 0
    like_previous = counts.differ_from_previous == 0
    if like_current and like_previous:
        raise ClmoeError(
            f"phi_t equals theta_{{t-1}} in all {counts.total} tensors: training on this task "
            f"changed no expert in {current}",
            hint="likely causes: a learning rate of 0, no training step, or the adapter of "
            "another task",
        )
    if like_current:
        weights = sorted({weight for role in roles.values() for weight in role.lambdas})
        raise ClmoeError(
            f"the merged adapter equals phi_t in all {counts.total} tensors of its experts: "
            "nothing was merged",
            hint=f"likely causes: every lambda is 0 (they are {weights}, gamma is {gamma:g}), or "
            "theta_{t-1} differs by less than the stored dtype can hold",
        )
    if like_previous and gamma != 1:
        raise ClmoeError(
            f"the merged adapter equals theta_{{t-1}} in all {counts.total} tensors of its "
            f"experts although gamma is {gamma:g}, not 1",
            hint="likely causes: the change of this task is below the resolution of the stored "
            "dtype, or every lambda is 1",
        )


def _ratio(above: Tensor, *, below: Tensor) -> float | None:
    if float(below) == 0:
        return 0.0 if float(above) == 0 else None
    return sqrt(float(above) / float(below))
