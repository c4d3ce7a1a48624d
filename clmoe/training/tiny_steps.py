"""Optimizer steps of the built-in base's pretraining."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger("clmoe.pretrain_tiny")


def one_cycle(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up over 5 percent, then a cosine to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def optimize(
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    label: str,
) -> list[float]:
    """AdamW with one cycle of the learning rate; returns the mean loss of each tenth of it."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * one_cycle(step, steps)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            log.info("%s %d/%d: loss %.4f", label, step + 1, steps, float(np.mean(losses[-100:])))
    return [round(float(np.mean(part)), 4) for part in np.array_split(losses, 10)]


def shuffled(total: int, *, batch: int, seed: str) -> Iterator[np.ndarray]:
    """Endless batches of indices, every index once per pass."""
    rng = np.random.default_rng(list(seed.encode()))
    while True:
        order = rng.permutation(total)
        yield from (order[i : i + batch] for i in range(0, total - batch + 1, batch))
