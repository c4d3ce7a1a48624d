"""Equations 5 and 9: the instance router, and the gate that inference mixes from both routers.

Equation 5: `w_I = softmax(x W_gate)`. Equation 9: `beta * w_I + (1 - beta) * w_T(t)`, where w_T(t)
is the task router's weight vector for the task that the question was assigned to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clmoe.errors import ClmoeError


class _Logits(torch.autograd.Function):
    """`x W_gate` in float32 for an x of another dtype, which is kept as it came for the backward.

    Autograd alone would keep x's float32 copy, beside the x that the experts keep anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            (gradient @ weight.float()).to(x.dtype) if to_x else None,
            (rows.T @ x.flatten(0, -2).float()).to(weight.dtype) if to_weight else None,
        )


def instance_gate(x: Tensor, weight: Tensor) -> Tensor:
    """Return the instance router's gate w_I, Equation 5.

    Args:
        x: What the router reads, [..., in].
        weight: W_gate, stored as [n, in].

    Returns:
        w_I [..., n] in float32, each row summing to 1. Product and softmax run in float32, under
        autocast too.
    """
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return _logits(x, weight).softmax(dim=-1)
    return _logits(x, weight).softmax(dim=-1)


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    if x.dtype == torch.float32:
        return F.linear(x, weight.float())
    logits: Tensor = _Logits.apply(x, weight)  # type: ignore[no-untyped-call]
    return logits


def mix_gates(instance: Tensor, task: Tensor, *, beta: float) -> Tensor:
    """Return the gate of inference, Equation 9: `beta * w_I + (1 - beta) * w_T`.

    Args:
        instance: w_I, [..., n].
        task: w_T, broadcastable to `instance`.
        beta: Share of the instance router, in [0, 1]. At 1 `instance` is returned as it is, at 0
            the task weights alone count.
    """
    if beta == 1.0:
        return instance
    if beta == 0.0:
        return task.expand_as(instance)
    return beta * instance + (1.0 - beta) * task


class Router(nn.Module):
    """One instance router: W_gate [n, in] in float32, and what a context manager attached to it.

    `clmoe.model.control` sets `task_weights`, `beta` and `recorder`; nothing is attached otherwise.
    """

    def __init__(self, weight: Tensor) -> None:
        """Hold W_gate.

        Args:
            weight: Initial W_gate, [n, in].
        """
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.task_weights: Tensor | None = None
        self.beta = 1.0
        self.recorder: Callable[[Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate for x [batch, ..., in]: [batch, ..., n], or broadcastable to it.

        Raises:
            ClmoeError: The task weights were given for another batch size.
        """
        task = self.task_weights
        if task is not None and task.dim() == 2:
            if task.shape[0] != x.shape[0]:
                raise ClmoeError(
                    f"task weights are given for {task.shape[0]} samples, "
                    f"but the batch holds {x.shape[0]}",
                    hint="give one row of task weights per sample of the batch",
                )
            task = task.reshape(task.shape[0], *(1,) * (x.dim() - 2), task.shape[1])
        if task is not None and self.beta == 0.0 and self.recorder is None:
            return task
        gate = instance_gate(x, self.weight)
        if self.recorder is not None:
            self.recorder(gate.detach())
        return gate if task is None else mix_gates(gate, task, beta=self.beta)

    def extra_repr(self) -> str:
        """Return the sizes, as torch prints a module."""
        return f"in_features={self.weight.shape[1]}, experts={self.weight.shape[0]}"
