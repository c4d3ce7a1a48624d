"""What a stage says when the device runs out of memory: the measured peak, and what to try."""

from __future__ import annotations

import resource
import sys

import torch

from clmoe.baselines.registry import STRATEGIES
from clmoe.errors import MemoryExhaustedError
from clmoe.recipe.schema import Recipe
from clmoe.runs.plan import Node

SUGGESTED = 3


def exhausted(recipe: Recipe, node: Node, *, device: torch.device) -> MemoryExhaustedError:
    """The error of a stage that ran out of memory, with overrides that need less.

    Args:
        recipe: The run's recipe, which the overrides depend on.
        node: The stage.
        device: What it ran on.
    """
    return MemoryExhaustedError(
        f"{node.label} ran out of memory on {device}: {peak(device)}",
        hint="try one of " + ", ".join(overrides(recipe, stage=node.stage)[:SUGGESTED]),
    )


def peak(device: torch.device) -> str:
    """The most memory that this process has held on a device, in words."""
    if device.type == "cuda":
        used, there = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
        return f"the peak was {used / 2**30:.2f} of {there / 2**30:.2f} GiB"
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"the process held {used / 2**30:.2f} GiB at its peak"


def overrides(recipe: Recipe, *, stage: str) -> list[str]:
    """Recipe keys that lower the memory of a stage, the least costly first."""
    train = recipe.train
    if stage == "train":
        samples = train.batch_size if train.micro_batch is None else train.micro_batch
        whole = STRATEGIES[recipe.strategy.kind].whole_steps
        options = {
            "train.micro_batch=auto": samples not in ("auto", 1) and not whole,
            "train.gradient_checkpointing=true": not train.gradient_checkpointing,
        }
    else:
        smaller = recipe.eval.batch_size // 4
        options = {f"eval.batch_size={max(1, smaller)}": recipe.eval.batch_size > 1}
    options |= {
        "base.dtype=bfloat16": recipe.base.dtype == "float32",
        "base.quantization=nf4": recipe.base.quantization == "none",
        "data.turns=question": stage == "train" and recipe.data.turns == "image",
        f"adapter.rank={recipe.adapter.experts}": recipe.adapter.rank > recipe.adapter.experts,
    }
    return [override for override, helps in options.items() if helps]
