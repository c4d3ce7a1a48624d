"""Modules that are trained whole beside the experts, such as the projector, always in float32.

PEFT trains a copy of such a module (`ModulesToSaveWrapper`) and keeps the original. In a bfloat16
base AdamW's small steps would mostly be rounded away in a bfloat16 copy, so the copy is float32: it
computes in float32, on an input that is cast to it, and its output is cast back to the base's
dtype. In a float32 base nothing is cast.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def train_in_float32(model: nn.Module, *, adapter_name: str) -> None:
    """Put the trained copies of an adapter's whole modules into float32.

    Args:
        model: The base model with the adapter attached.
        adapter_name: PEFT's name of the adapter.
    """
    for wrapper in _wrappers(model):
        if adapter_name not in wrapper.modules_to_save:
            continue
        trained = wrapper.modules_to_save[adapter_name]
        stored = {p.dtype for p in trained.parameters() if p.is_floating_point()}
        if stored in (set(), {torch.float32}):
            continue
        trained.float()
        dtype = next(p.dtype for p in wrapper.original_module.parameters() if p.is_floating_point())
        trained.register_forward_pre_hook(_cast_input, with_kwargs=True)
        trained.register_forward_hook(partial(_cast_output, dtype))


def leave_originals(model: nn.Module) -> None:
    """Make PEFT's unloading put the base's own modules back, as they were before any training."""
    for wrapper in _wrappers(model):
        wrapper.set_adapter([])


def _wrappers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper))


def _cast_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _cast(args, torch.float32), _cast(kwargs, torch.float32)


def _cast_output(dtype: torch.dtype, module: nn.Module, args: Any, output: Any) -> Any:
    return _cast(output, dtype)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Every floating-point tensor among `values` in another dtype."""

    def cast(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floats else value

    return tree_map(cast, values)
