"""Gradient checkpointing of a model that carries experts.

A block's gate is computed inside the block's forward, so a recomputed block computes it again; the
gradients are the same with and without checkpointing, in both kinds of it.
"""

from __future__ import annotations

from typing import Any


def enable_checkpointing(model: Any, *, reentrant: bool = False) -> None:
    """Recompute the decoder blocks in the backward pass instead of keeping their activations.

    Args:
        model: A base model or a PEFT model; it acts in training mode only.
        reentrant: Use torch's older kind, which needs inputs that require gradients, so the
            embeddings are made to give them. The newer kind is as fast and needs nothing.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if reentrant:
        base.enable_input_require_grads()
    # transformers 5.23 renamed it and warns about the old name.
    new_name = getattr(base, "activation_checkpointing_enable", None)
    enable = new_name if new_name is not None else base.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
