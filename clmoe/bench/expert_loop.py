"""The mixture as a straightforward loop: n small LoRAs, one after another, each times its gate.

This is how public implementations of mixtures of LoRA experts compute Equation 3, and what the two
matrix products of `clmoe.model.mixture` are measured against.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from clmoe.model.layer import MixtureLinear


class LoopLinear(MixtureLinear):
    """The linear of a `MixtureLinear` with the same experts and router, run expert by expert."""

    def __init__(self, layer: MixtureLinear, *, adapter: str = "default") -> None:
        """Take over base layer and router, and copy each expert into two linears of its own.

        The experts get the base layer's dtype, so that no step casts them.

        Args:
            layer: The adapted linear.
            adapter: Which of its adapters.
        """
        super().__init__(layer.base_layer)
        weight = layer.get_base_layer().weight
        self.adapter = adapter
        for name in ("rank", "experts", "scaling", "dropout", "shared"):
            getattr(self, name)[adapter] = getattr(layer, name)[adapter]
        if adapter in layer.clmoe_router:
            self.clmoe_router[adapter] = layer.clmoe_router[adapter]
        count = layer.experts[adapter]
        a, b = layer.clmoe_A[adapter].weight, layer.clmoe_B[adapter].weight
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        self.down = nn.ModuleList(_linear(part, like=weight) for part in a.chunk(count, dim=0))
        self.up = nn.ModuleList(_linear(part, like=weight) for part in b.chunk(count, dim=1))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `W x + (alpha/r) sum_i G_i B_i A_i x`, [..., out], one expert at a time."""
        out: Tensor = self.base_layer(x, *args, **kwargs)
        gate = self._gate(self.adapter, x)
        weights = None if gate is None else gate.to(out.dtype)
        scaling = self.scaling[self.adapter]
        for i, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            expert = up(down(x)) * scaling
            out = out + (expert if weights is None else expert * weights[..., i : i + 1])
        return out


def run_as_loop(model: nn.Module) -> None:
    """Put a `LoopLinear` in the place of every adapted linear of a model."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, MixtureLinear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, LoopLinear(layer))


def _linear(weight: Tensor, *, like: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().to(like.dtype).contiguous().clone())
    return linear
