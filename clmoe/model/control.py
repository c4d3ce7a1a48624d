"""Context managers over a model's routers: task weights at inference, and a record of the gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clmoe.errors import ClmoeError
from clmoe.model.layer import MixtureLinear
from clmoe.model.routers import Router


def routers(model: Any) -> dict[str, Router]:
    """Return the active adapter's instance routers by name, in model order.

    A router's name is the path in the base model of the linear that holds it, as in
    `ClmoeConfig.router_of`. Empty with one expert, which has no router.

    Args:
        model: A PEFT model, or a base model with the method attached.

    Raises:
        ClmoeError: Several adapters are active at once.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: dict[str, Router] = {}
    for path, layer in base.named_modules():
        if isinstance(layer, MixtureLinear):
            active = [name for name in layer.active_adapters if name in layer.clmoe_router]
            if len(active) > 1:
                raise ClmoeError(
                    f"{len(active)} adapters are active at once: {', '.join(active)}",
                    hint="choose one with set_adapter",
                )
            for name in active:
                router = layer.clmoe_router[name]
                assert isinstance(router, Router)
                found[path] = router
    return found


def router_names(model: nn.Module) -> list[str]:
    """Return the names of the active adapter's routers, in model order."""
    return list(routers(model))


@contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
    """Run another of the model's adapters for a while; what is trained stays what it is.

    (PEFT's `set_adapter` also turns the gradients of every adapter on or off.)
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = [layer for layer in base.modules() if isinstance(layer, MixtureLinear)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = name  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


@contextmanager
def inference_gates(
    model: nn.Module, task_weights: Mapping[str, Tensor], *, beta: float
) -> Iterator[None]:
    """Gate with both routers, Equation 9, as long as the context lasts.

    Args:
        model: The model with its adapter, in eval mode (training uses w_I alone).
        task_weights: For each router w_T, [n] for the whole batch or [batch, n] per sample.
        beta: Share of the instance router. At 1 nothing is attached: the outputs are those of the
            instance router bit for bit. At 0 the instance router is not run.

    Raises:
        ClmoeError: The model is in training mode, a router is without weights or unknown, weights
            have another number of experts, or beta is not in [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ClmoeError(f"beta is {beta}, not in [0, 1]")
    if model.training:
        raise ClmoeError(
            "task weights are for inference; training uses the instance router alone",
            hint="call model.eval() first",
        )
    held = routers(model)
    _check_names(held, task_weights)
    if beta < 1.0:
        for name, router in held.items():
            weight, experts = task_weights[name], router.weight.shape[0]
            if weight.dim() not in (1, 2) or weight.shape[-1] != experts:
                raise ClmoeError(
                    f"task weights of router {name} have shape {list(weight.shape)}; "
                    f"expected [{experts}] or [batch, {experts}]"
                )
            router.task_weights = weight.to(device=router.weight.device, dtype=torch.float32)
            router.beta = float(beta)
    try:
        yield
    finally:
        for router in held.values():
            router.task_weights = None
            router.beta = 1.0


@contextmanager
def record_gates(model: nn.Module, callback: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand every gate w_I to `callback(router name, gate [batch, tokens, n])`, for Equation 6.

    The gate is the instance router's, detached, in float32, also where `inference_gates` mixes it.
    """
    held = routers(model)
    for name, router in held.items():
        router.recorder = partial(callback, name)
    try:
        yield
    finally:
        for router in held.values():
            router.recorder = None


def reset_routers(model: nn.Module, *, std: float, seed: int) -> None:
    """Give the active adapter's routers new weights, normal(0, std).

    Args:
        model: The model with its adapter.
        std: Standard deviation.
        seed: Seed of one generator that fills the routers in model order.
    """
    generator = torch.Generator().manual_seed(seed)
    for router in routers(model).values():
        weight = torch.empty(router.weight.shape).normal_(0.0, std, generator=generator)
        with torch.no_grad():
            router.weight.copy_(weight)


def _check_names(held: Mapping[str, Router], given: Mapping[str, Tensor]) -> None:
    missing = [name for name in held if name not in given]
    unknown = [name for name in given if name not in held]
    if missing or unknown:
        raise ClmoeError(
            f"task weights do not fit the adapter's {len(held)} routers: {len(missing)} have none, "
            f"{len(unknown)} names are unknown (first: {(missing or unknown)[0]})",
            hint="the task router must come from the same adapter; route the task again",
        )
