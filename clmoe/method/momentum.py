"""Equation 12: theta_t = lambda * theta_{t-1} + (1 - lambda) * phi_t, expert by expert.

theta_{t-1} is the merged adapter of the tasks before, phi_t the adapter just trained, lambda the
vector of Eq 11 of the router that gates the expert. Tensors are read, merged and written one
linear at a time; arithmetic is fp32, the result has the stored dtype. Where lambda is 1 or 0 the
source is copied bit for bit.

Space "factors" merges A_i and B_i apart. Space "product" merges B_i A_i and factors the result
to the same rank again. The router Psi is not part of theta: it is kept from phi_t, or (an
option) merged with the one weight gamma, or kept from theta_{t-1}. Extras (a trained projector)
are kept from phi_t, or merged with gamma.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.method.adapter_layout import AdapterLayout, Linear, differences, read_layout
from clmoe.method.expert_roles import ExpertRoles
from clmoe.method.low_rank import low_rank_sum, product_norms
from clmoe.method.merge_report import (
    ExpertTally,
    MergeReport,
    TensorCounts,
    TensorTally,
    refuse_empty_merge,
    same_bits,
)
from clmoe.method.tensor_file import TensorFileWriter
from clmoe.model.adapter_info import WEIGHTS_FILE

Space = Literal["factors", "product"]
RouterRule = Literal["keep", "momentum", "previous"]
ExtraRule = Literal["keep", "momentum"]
Reader = Callable[[str], Tensor]


def merge_adapters(
    previous_dir: Path | None,
    *,
    current_dir: Path,
    out_dir: Path,
    roles: Mapping[str, ExpertRoles],
    gamma: float,
    space: Space = "factors",
    routers: RouterRule = "keep",
    extras: ExtraRule = "keep",
) -> MergeReport:
    """Merges phi_t into theta_{t-1} and writes theta_t as an adapter folder.

    Args:
        previous_dir: theta_{t-1}; None for the first task, whose adapter is copied.
        current_dir: phi_t.
        out_dir: Where theta_t goes; made if absent.
        roles: Roles and lambdas of each router (see `assign_roles`, `single_expert_roles`);
            ignored for the first task.
        gamma: The momentum, for routers and extras.
        space: What Eq 12 is applied to: the factors, or their product.
        routers: What becomes of the router tensors.
        extras: What becomes of all other tensors.

    Returns:
        What the merge did, measured.

    Raises:
        ClmoeError: The two adapters do not match (all differences are listed), the roles do not
            fit them, a tensor is not finite, or the result is one of its sources.
    """
    current = read_layout(current_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    rules = {"gamma": gamma, "space": space, "router_rule": routers, "extra_rule": extras}
    if previous_dir is None:
        _copy_files(current_dir, out_dir=out_dir, weights=True)
        counts = {
            "factors": TensorCounts(2 * len(current.linears), 0, None),
            "routers": TensorCounts(len(current.routers), 0, None),
            "extras": TensorCounts(len(current.extras), 0, None),
        }
        return MergeReport(first_task=True, changes={}, **counts, **rules)  # type: ignore[arg-type]
    previous = read_layout(previous_dir)
    _check_pair(previous, current=current)
    _check_roles(roles, layout=current)
    tallies = {router: ExpertTally(current.experts) for router in current.expert_routers}
    factors, router_counts, extra_counts = TensorTally(), TensorTally(), TensorTally()
    merge_linear = _merge_factors if space == "factors" else _merge_products
    weights = {"keep": 0.0, "momentum": gamma, "previous": 1.0}
    with (
        safe_open(previous.weights_file, framework="pt") as old_file,
        safe_open(current.weights_file, framework="pt") as new_file,
        TensorFileWriter(
            out_dir / WEIGHTS_FILE, shapes=current.shapes, dtypes=current.dtypes
        ) as out,
    ):
        old, new = _finite(old_file.get_tensor, previous), _finite(new_file.get_tensor, current)
        for linear in current.linears:
            pairs = {name: (old(name), new(name)) for name in (linear.a, linear.b)}
            merged = merge_linear(
                linear, pairs=pairs, roles=roles[linear.router], tally=tallies[linear.router]
            )
            for name, tensor in merged.items():
                factors.add(tensor, previous=pairs[name][0], current=pairs[name][1])
                out.write(name, tensor)
        for names, rule, tally in (
            (current.routers, routers, router_counts),
            (current.extras, extras, extra_counts),
        ):
            for name in names:
                before, after = old(name), new(name)
                tensor = interpolate(before, current=after, weight=weights[rule])
                tally.add(tensor, previous=before, current=after)
                out.write(name, tensor)
        refuse_empty_merge(factors.counts(), roles=roles, gamma=gamma, current=current_dir)
    _copy_files(current_dir, out_dir=out_dir, weights=False)
    return MergeReport(
        first_task=False,
        factors=factors.counts(),
        routers=router_counts.counts(),
        extras=extra_counts.counts(),
        changes={
            router: tally.changes(roles[router], product=space == "product")
            for router, tally in tallies.items()
        },
        **rules,  # type: ignore[arg-type]
    )


def interpolate(previous: Tensor, *, current: Tensor, weight: float | Tensor) -> Tensor:
    """`weight * previous + (1 - weight) * current` in fp32, returned in the stored dtype.

    Computed as current + weight * (previous - current): equal sources stay equal. Where the
    weight is exactly 1 or 0 the source is copied bit for bit.

    Args:
        previous: theta_{t-1}, any shape.
        current: phi_t, the same shape and dtype.
        weight: A number, or a tensor that broadcasts against both.
    """
    factor = torch.as_tensor(weight, dtype=torch.float64)
    old, new = previous.float(), current.float()
    merged = torch.addcmul(new, factor.float(), old - new).to(current.dtype)
    if bool((factor == 1).any()):
        merged = torch.where(factor == 1, previous, merged)
    if bool((factor == 0).any()):
        merged = torch.where(factor == 0, current, merged)
    return merged


def _merge_factors(
    linear: Linear,
    *,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    roles: ExpertRoles,
    tally: ExpertTally,
) -> dict[str, Tensor]:
    """A and B apart: row j of A and column j of B have the lambda of their expert."""
    experts = len(roles.lambdas)
    width = pairs[linear.a][0].shape[0] // experts
    weight = torch.tensor(roles.lambdas, dtype=torch.float64).repeat_interleave(width)  # [r]
    merged: dict[str, Tensor] = {}
    for name, axis in ((linear.a, 0), (linear.b, 1)):
        old, new = pairs[name]
        result = interpolate(old, current=new, weight=weight.unsqueeze(1 - axis))
        for total, difference in (
            (tally.to_previous, result.float() - old.float()),
            (tally.to_current, result.float() - new.float()),
            (tally.previous, old),
            (tally.current, new),
        ):
            lengths = torch.linalg.vector_norm(difference.float(), dim=1 - axis).double()  # [r]
            total += (lengths**2).view(experts, width).sum(dim=1)
        merged[name] = result
    return merged


def _merge_products(
    linear: Linear,
    *,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    roles: ExpertRoles,
    tally: ExpertTally,
) -> dict[str, Tensor]:
    """B_i A_i of each expert, factored to its own rank again."""
    (old_a, new_a), (old_b, new_b) = pairs[linear.a], pairs[linear.b]
    width = old_a.shape[0] // len(roles.lambdas)
    merged = {linear.a: torch.empty_like(new_a), linear.b: torch.empty_like(new_b)}
    for i, weight in enumerate(roles.lambdas):
        part = slice(i * width, (i + 1) * width)
        a1, a2 = old_a[part], new_a[part]
        b1, b2 = old_b[:, part].contiguous(), new_b[:, part].contiguous()
        if weight == 0 or (same_bits(a1, a2) and same_bits(b1, b2)):
            a, b = a2, b2
        elif weight == 1:
            a, b = a1, b1
        else:
            low = low_rank_sum(
                a1.float(), b1=b1.float(), a2=a2.float(), b2=b2.float(), weight=weight
            )
            a, b = low.a.to(new_a.dtype), low.b.to(new_b.dtype)
            tally.norm[i] += low.norm
            tally.discarded[i] += low.discarded
        merged[linear.a][part], merged[linear.b][:, part] = a, b
        for apart, whole, other_a, other_b in (
            (tally.to_previous, tally.previous, a1, b1),
            (tally.to_current, tally.current, a2, b2),
        ):
            difference, norm = product_norms(a, b1=b, a2=other_a, b2=other_b)
            apart[i] += difference
            whole[i] += norm
    return merged


def _finite(read: Reader, layout: AdapterLayout) -> Reader:
    """A reader that refuses a tensor with NaN or infinity."""

    def checked(name: str) -> Tensor:
        tensor = read(name)
        if not bool(tensor.sum(dtype=torch.float64).isfinite()):
            raise ClmoeError(
                f"{name} of {layout.folder} has a value that is not a finite number",
                hint="training has probably diverged: look at its loss",
            )
        return tensor

    return checked


def _check_pair(previous: AdapterLayout, *, current: AdapterLayout) -> None:
    found = differences(previous, current)
    if found:
        raise ClmoeError(
            f"{previous.folder} and {current.folder} cannot be merged: {'; '.join(found)}",
            hint="both must be adapters of one run, made with the same adapter.* keys",
        )


def _check_roles(roles: Mapping[str, ExpertRoles], *, layout: AdapterLayout) -> None:
    names = set(layout.expert_routers)
    problems = [f"no roles for {name}" for name in sorted(names - roles.keys())]
    problems += [f"{name} gates nothing" for name in sorted(roles.keys() - names)]
    problems += [
        f"{name} has roles for {len(value.roles)} experts, not {layout.experts}"
        for name, value in roles.items()
        if len(value.roles) != layout.experts
    ]
    if problems:
        raise ClmoeError(f"the roles do not fit {layout.folder}: {'; '.join(problems)}")


def _copy_files(folder: Path, *, out_dir: Path, weights: bool) -> None:
    """Copies the adapter's files byte for byte, with or without its tensors."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and (weights or path.name != WEIGHTS_FILE):
            shutil.copyfile(path, out_dir / path.name)
