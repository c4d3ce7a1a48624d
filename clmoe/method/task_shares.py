"""How much of each learned task's weights a question gets: all of one (Eq 8), or several mixed.

The paper takes the nearest task alone. Two options ask how much that matters: soft shares over the
nearest tasks, and task ids that are replaced at random.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hard_shares(chosen: Tensor, *, tasks: int) -> Tensor:
    """All of one task: [N] positions to [N, tasks] float64."""
    return torch.nn.functional.one_hot(chosen, tasks).double()


def soft_shares(distances: Tensor, *, temperature: float) -> Tensor:
    """``softmax(-d / (temperature * mean d))`` over tasks, [N, tasks]; small temperatures are hard.

    Args:
        distances: Distance of each question to each task, [N, tasks].
        temperature: Above zero, relative to a question's mean distance, so that it has no unit.
    """
    scale = temperature * distances.mean(dim=1, keepdim=True).clamp_min(1e-30)
    return torch.softmax(-distances.double() / scale, dim=1)


def with_noise(shares: Tensor, *, share: float, generator: torch.Generator) -> Tensor:
    """Replace the task of a share of the questions by another one, drawn evenly.

    Args:
        shares: [N, tasks].
        share: Questions to disturb, from 0 to 1; with a single task nothing can be replaced.
        generator: Draws which questions and which tasks.
    """
    count, tasks = shares.shape
    if tasks == 1 or not share:
        return shares
    rows = torch.randperm(count, generator=generator)[: round(share * count)]
    ahead = torch.randint(1, tasks, (len(rows),), generator=generator)
    noisy = shares.clone()
    noisy[rows] = hard_shares((shares[rows].argmax(dim=1) + ahead) % tasks, tasks=tasks)
    return noisy
