"""The same frozen model with different adapters, side by side on one copy of the base weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from clmoe.bench.expert_loop import run_as_loop
from clmoe.model.config import ClmoeConfig
from clmoe.model.targets import resolve_targets
from clmoe.model.tuner import attach

PLAIN = "no adapter"
LORA = "PEFT LoRA"
LORA_FLOAT32 = "PEFT LoRA, float32"
LOOP = "loop over experts"
OURS = "clmoe"
LORA_SCALE = 2.0  # alpha / r of the paper's setting


@dataclass(frozen=True)
class Mixture:
    """What the adapters of a measurement have in common.

    Attributes:
        rank: r of the LoRA, and of all experts together.
        experts: n.
        targets: The linears, as in `ClmoeConfig.targets`.
        routers: As in `ClmoeConfig.routers`.
    """

    rank: int
    experts: int
    targets: str | list[str] = "ffn"
    routers: str = "per-block"

    def config(self) -> ClmoeConfig:
        """The configuration of our adapter."""
        return ClmoeConfig(
            experts=self.experts,
            r=self.rank,
            alpha=LORA_SCALE * self.rank,
            targets=self.targets,
            routers=self.routers,
        )


def twin(model: nn.Module) -> nn.Module:
    """Another model with the very same parameters and buffers, which adapters leave alone."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, dict(shared))


def adapted(base: nn.Module, mixture: Mixture) -> Iterator[tuple[str, Any]]:
    """Yield PEFT models by name: plain LoRA, the loop over experts, ours, all of one rank.

    The LoRA has the base's dtype, which is the fastest; below float32 there is another one as PEFT
    makes it unless told otherwise, in float32 with its input cast to that. Ours keeps its
    parameters in float32 and computes in the base's dtype.

    Args:
        base: The base model; its parameters are frozen and shared by all.
        mixture: What to attach.
    """
    base.requires_grad_(False)
    plan = resolve_targets(base, targets=mixture.targets, routers=mixture.routers)
    lora = LoraConfig(
        r=mixture.rank, lora_alpha=LORA_SCALE * mixture.rank, target_modules=list(plan.router_of)
    )
    yield LORA, _lora(twin(base), lora, float32=False)
    if next(base.parameters()).dtype != torch.float32:
        yield LORA_FLOAT32, _lora(twin(base), lora, float32=True)
    loop = attach(twin(base), mixture.config())
    run_as_loop(loop)
    yield LOOP, loop
    yield OURS, attach(twin(base), mixture.config())


def wake(model: nn.Module) -> None:
    """Give the zeros of a new adapter (B) random values, so that it does something."""
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def _lora(model: nn.Module, config: LoraConfig, *, float32: bool) -> Any:
    with warnings.catch_warnings():
        # PEFT asks transformers for a property under its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return get_peft_model(model, copy.deepcopy(config), autocast_adapter_dtype=float32)
