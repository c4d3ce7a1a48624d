"""The adapted linear: a frozen base layer plus the experts of every adapter (Equation 3).

`x -> W x + (alpha/r) * B (repeat_each(g, r/n) * (A x))`. The gate g comes from the layer's own
router, or, where a block shares one, from the router that `open_gates` ran on the block's input.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from clmoe.errors import ClmoeError
from clmoe.model.config import ClmoeConfig
from clmoe.model.mixture import mixture_delta
from clmoe.model.routers import Router


class MixtureLinear(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear of the base model with LoRA experts, one stack of them per adapter.

    A [r, in], B [out, r] and router [n, in] are kept in float32 whatever the base model's dtype.
    """

    if TYPE_CHECKING:
        active_adapters: list[str]
        disable_adapters: bool
        get_base_layer: Callable[[], Any]
        set_adapter: Callable[..., None]

    adapter_layer_names = ("clmoe_A", "clmoe_B", "clmoe_router")
    other_param_names = ("rank", "experts", "scaling", "dropout", "shared")

    def __init__(self, base_layer: nn.Module) -> None:
        """Wrap a linear; `update_layer` adds adapters to it."""
        super().__init__()
        self.base_layer = base_layer
        self.clmoe_A = nn.ModuleDict()
        self.clmoe_B = nn.ModuleDict()
        self.clmoe_router = nn.ModuleDict()
        self.rank: dict[str, int] = {}
        self.experts: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        self.shared: dict[str, bool] = {}
        self.gates: dict[str, Tensor] = {}
        self.merged_adapters: list[str] = []
        self.in_features = int(self.get_base_layer().in_features)
        self.out_features = int(self.get_base_layer().out_features)

    def update_layer(
        self, adapter_name: str, *, config: ClmoeConfig, path: str, router_width: int | None
    ) -> None:
        """Add an adapter, with its initial weights.

        Args:
            adapter_name: PEFT's name of the adapter.
            config: Its configuration.
            path: This linear's path in the base model; with `config.init_seed` it decides the
                initial weights, so that they depend on neither order nor other linears.
            router_width: What the router held here reads, or None where another linear holds it.
        """
        device = self.get_base_layer().weight.device
        seed = config.init_seed
        bound = 1.0 / math.sqrt(self.in_features)
        a = torch.empty(config.r, self.in_features)
        a.uniform_(-bound, bound, generator=_generator(seed, path, "A"))
        self.clmoe_A[adapter_name] = _linear(a, device)
        self.clmoe_B[adapter_name] = _linear(torch.zeros(self.out_features, config.r), device)
        if config.experts > 1 and router_width is not None:
            weight = torch.empty(config.experts, router_width)
            weight.normal_(0.0, config.router_std, generator=_generator(seed, path, "router"))
            self.clmoe_router[adapter_name] = Router(weight.to(device))
        self.rank[adapter_name] = config.r
        self.experts[adapter_name] = config.experts
        self.scaling[adapter_name] = config.scaling
        self.dropout[adapter_name] = config.dropout
        self.shared[adapter_name] = config.routers == "per-block"
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the active adapters' mixtures, [..., out]."""
        out: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return out
        for name in self.active_adapters:
            if name not in self.clmoe_A:
                continue
            a, b = self.clmoe_A[name], self.clmoe_B[name]
            assert isinstance(a, nn.Linear)
            assert isinstance(b, nn.Linear)
            delta = mixture_delta(
                F.dropout(x, self.dropout[name], self.training) if self.dropout[name] else x,
                a=a.weight,
                b=b.weight,
                scaling=self.scaling[name],
                gate=self._gate(name, x),
            )
            out = out + delta.to(out.dtype)
        return out

    def _gate(self, name: str, x: Tensor) -> Tensor | None:
        if self.experts[name] == 1:
            return None
        if not self.shared[name]:
            gate: Tensor = self.clmoe_router[name](x)
            return gate
        if name not in self.gates:
            raise ClmoeError(
                "an adapted linear was called without the block whose input its router reads",
                hint="call the whole MLP or attention, or use adapter.routers=per-linear",
            )
        return self.gates[name]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to fold the experts into the base weight.

        Raises:
            ClmoeError: Always: what the experts add depends on each input through the gate.
        """
        raise ClmoeError(
            "a mixture cannot be folded into the base weights: its gate depends on each input",
            hint="keep the adapter beside the base model",
        )

    def unmerge(self) -> None:
        """Do nothing: there is never anything folded in."""

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move one adapter to the base layer's device; its dtype stays (PEFT would cast it)."""
        target = device if device is not None else self.get_base_layer().weight.device
        for held in (self.clmoe_A, self.clmoe_B, self.clmoe_router):
            if adapter_name in held:
                held[adapter_name].to(target)


def open_gates(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the shared routers of a block on its input, before its forward (a module hook).

    The gate is computed once and handed to every adapted linear of the block. The hook finds the
    layers through the module it is called with, so that copies of a model never share a gate.
    """
    x = args[0] if args else kwargs["hidden_states"] if "hidden_states" in kwargs else kwargs["x"]
    layers = [layer for layer in block.children() if isinstance(layer, MixtureLinear)]
    for layer in layers:
        if layer.disable_adapters:
            continue
        for name in layer.active_adapters:
            if name in layer.clmoe_router and layer.shared[name]:
                gate = layer.clmoe_router[name](x)
                for user in layers:
                    user.gates[name] = gate


def close_gates(block: nn.Module, args: Any, output: Any) -> None:
    """Forget a block's gates after its forward, also a failed one (a module hook)."""
    for layer in block.children():
        if isinstance(layer, MixtureLinear):
            layer.gates.clear()


def _generator(seed: int, path: str, what: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}\0{path}\0{what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _linear(weight: Tensor, device: torch.device) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(device))
    return linear
