"""What an adapter holds, and how two adapters differ, measured on their tensors in float64.

Differences are counted over the factors A_i and B_i of every expert, as the released code stores
them, not over the stacked tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from clmoe.interop.opened import OpenedAdapter, check_comparable
from clmoe.method.merge_report import same_bits
from clmoe.method.tensor_file import DTYPES
from clmoe.model.adapter_info import a_key, b_key

FACTORS, ROUTERS, EXTRAS = "A_i and B_i", "routers", "trained whole"


@dataclass(frozen=True)
class ExpertNorms:
    """One expert over all linears: Frobenius norms, roots of sums of squares.

    Attributes:
        expert: Its index.
        a: Of its A_i.
        b: Of its B_i.
        product: Of its B_i A_i, without the scaling.
        dead: Linears where B_i is all zero, so that the expert adds nothing.
    """

    expert: int
    a: float
    b: float
    product: float
    dead: int


@dataclass(frozen=True)
class Description:
    """What an adapter holds.

    Attributes:
        linears: Adapted linears.
        routers: Router tensors.
        extras: Tensors of modules that are trained whole.
        parameters: Numbers in all tensors.
        bytes: What they take.
        dtypes: What they are stored in, as safetensors spells it.
        norm_a: Frobenius norm of all A.
        norm_b: The same of all B.
        experts: Each expert.
    """

    linears: int
    routers: int
    extras: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    norm_a: float
    norm_b: float
    experts: tuple[ExpertNorms, ...]


@dataclass(frozen=True)
class KindChange:
    """How the tensors of one kind differ.

    Attributes:
        kind: `FACTORS`, `ROUTERS` or `EXTRAS`.
        tensors: How many were compared.
        differ: How many are not equal bit for bit.
        largest: Largest absolute change of one value.
        where: The tensor that has it; None without a change.
        relative: Norm of all changes over the norm of the first adapter's tensors; None where
            that is 0 and the change is not.
    """

    kind: str
    tensors: int
    differ: int
    largest: float
    where: str | None
    relative: float | None


@dataclass(frozen=True)
class Comparison:
    """How a second adapter differs from a first.

    Attributes:
        kinds: By kind of tensor; kinds without tensors are left out.
        experts: The relative change of each expert's factors.
        only_one: Tensors that only one of the two has, which were not compared.
    """

    kinds: tuple[KindChange, ...]
    experts: tuple[float | None, ...]
    only_one: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether all that was compared is equal bit for bit."""
        return not any(kind.differ for kind in self.kinds)


def describe(adapter: OpenedAdapter) -> Description:
    """Measure one adapter."""
    info, tensors = adapter.info, adapter.tensors
    experts = []
    for i in range(info.experts):
        a2 = b2 = product2 = 0.0
        dead = 0
        for linear in info.router_of:
            a, b = (factor.double() for factor in adapter.expert(linear, i))
            a2, b2 = a2 + float((a**2).sum()), b2 + float((b**2).sum())
            product2 += float(((a @ a.T) * (b.T @ b)).sum())
            dead += not bool(b.any())
        experts.append(ExpertNorms(i, sqrt(a2), sqrt(b2), sqrt(max(product2, 0.0)), dead))
    return Description(
        linears=len(info.router_of),
        routers=len(adapter.router_tensors),
        extras=len(adapter.extras),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        dtypes=tuple(sorted({DTYPES[tensor.dtype] for tensor in tensors.values()})),
        norm_a=sqrt(sum(expert.a**2 for expert in experts)),
        norm_b=sqrt(sum(expert.b**2 for expert in experts)),
        experts=tuple(experts),
    )


def compare(first: OpenedAdapter, second: OpenedAdapter) -> Comparison:
    """How the second adapter differs from the first.

    Raises:
        ClmoeError: They are of different sizes, linears or bases.
    """
    check_comparable((first, second))
    total = first.info.experts
    apart, whole = [0.0] * total, [0.0] * total
    kinds: dict[str, _Tally] = {}
    for kind, name, expert, (one, two) in tensor_slices((first, second)):
        changed, size = kinds.setdefault(kind, _Tally(kind)).add(name, one, two)
        if expert is not None:
            apart[expert] += changed
            whole[expert] += size
    return Comparison(
        kinds=tuple(tally.finished() for tally in kinds.values()),
        experts=tuple(_ratio(a, w) for a, w in zip(apart, whole, strict=True)),
        only_one=tuple(sorted(first.tensors.keys() ^ second.tensors.keys())),
    )


def tensor_slices(
    adapters: tuple[OpenedAdapter, ...],
) -> Iterator[tuple[str, str, int | None, tuple[Tensor, ...]]]:
    """Yield kind, name, expert (None for other tensors) and the tensor of every adapter.

    First every A_i and B_i, then the routers, then the extras that all adapters have.
    """
    first = adapters[0]
    for linear in first.info.router_of:
        for i in range(first.info.experts):
            found = [adapter.expert(linear, i) for adapter in adapters]
            for key, factor in ((a_key(linear), 0), (b_key(linear), 1)):
                yield FACTORS, f"{key}, expert {i}", i, tuple(pair[factor] for pair in found)
    for kind, names in ((ROUTERS, first.router_tensors), (EXTRAS, first.extras)):
        for name in names:
            if all(name in adapter.tensors for adapter in adapters):
                yield kind, name, None, tuple(adapter.tensors[name] for adapter in adapters)


def equal_bits(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors of one shape are equal bit for bit; another dtype is a difference."""
    return one.dtype == two.dtype and same_bits(one, two)


class _Tally:
    """Adds up the changes of one kind of tensor."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.tensors = self.differ = 0
        self.largest, self.where = 0.0, ""
        self.apart = self.whole = 0.0

    def add(self, name: str, one: Tensor, two: Tensor) -> tuple[float, float]:
        """Count one tensor; the squared norms of its change and of the first."""
        difference, first = two.double() - one.double(), one.double()
        changed, size = float((difference**2).sum()), float((first**2).sum())
        self.tensors += 1
        self.differ += not equal_bits(one, two)
        self.apart, self.whole = self.apart + changed, self.whole + size
        largest = float(difference.abs().max())
        if largest > self.largest:
            self.largest, self.where = largest, name
        return changed, size

    def finished(self) -> KindChange:
        relative = _ratio(self.apart, self.whole)
        where = self.where or None
        return KindChange(self.kind, self.tensors, self.differ, self.largest, where, relative)


def _ratio(above: float, below: float) -> float | None:
    if below == 0:
        return 0.0 if above == 0 else None
    return sqrt(above / below)
