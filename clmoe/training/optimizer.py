"""AdamW with a warm-up and a cosine (paper, section 5): fresh for each task."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR

from clmoe.recipe.schema import Train


def warmup_steps(settings: Train, *, steps: int) -> int:
    """Optimizer steps of the warm-up; the first step always has a rate above zero."""
    return math.ceil(settings.warmup * steps)


def rate_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """Learning rate at an optimizer step (from 0) as a share of ``train.lr``.

    A line up during the warm-up; then half a cosine or a line down to zero at ``steps``, or 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "constant": 1.0,
    }[schedule]


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], *, settings: Train, steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Return AdamW over the trainable parameters and its schedule, stepped once a global batch."""
    optimizer = torch.optim.AdamW(
        list(parameters), lr=settings.lr, weight_decay=settings.weight_decay
    )
    warmup = warmup_steps(settings, steps=steps)

    def factor(step: int) -> float:
        return rate_factor(step, steps=steps, warmup=warmup, schedule=settings.schedule)

    return optimizer, LambdaLR(optimizer, factor)
