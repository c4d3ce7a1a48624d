"""Equation 3: the mixture of LoRA experts, computed densely.

`f(x) = W x + (alpha / r) * sum_i G(x)_i B_i A_i x`, with n experts of rank r/n each. The experts
are slices of one A [r, in] and one B [out, r] (expert i is rows i*r/n .. (i+1)*r/n of A and the
same columns of B), so the sum over experts is two matrix products with the gate between them:
`B @ (repeat_each(g, r/n) * (A x)) * alpha/r`. It costs what a plain LoRA of rank r costs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def mixture_delta(
    x: Tensor, *, a: Tensor, b: Tensor, scaling: float, gate: Tensor | None = None
) -> Tensor:
    """Return the mixture's addition to `W x`: `scaling * sum_i gate_i B_i A_i x`.

    Args:
        x: Input of the linear, [..., in]. The products run in its dtype (under autocast: in
            autocast's), whatever dtype A and B are stored in.
        a: Stacked A of all experts, [r, in].
        b: Stacked B of all experts, [out, r].
        scaling: alpha / r.
        gate: One weight per expert, broadcastable to [..., n]; n must divide r. None for a single
            expert without router, which is plain LoRA.

    Returns:
        The addition, [..., out].
    """
    hidden = F.linear(x, a.to(x.dtype))  # [..., r]
    down = b.to(x.dtype)
    if gate is None:
        return F.linear(hidden, down) * scaling
    experts = gate.shape[-1]
    weights = (gate * scaling).to(hidden.dtype).unsqueeze(-1)  # [..., n, 1]
    split = hidden.view(*hidden.shape[:-1], experts, -1) * weights  # [..., n, r/n]
    return F.linear(split.flatten(-2), down)
