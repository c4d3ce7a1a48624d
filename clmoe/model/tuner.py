"""The mixture as a PEFT method named `CLMOE`.

After `register()`, `get_peft_model(model, ClmoeConfig(...))`, `save_pretrained`,
`PeftModel.from_pretrained`, `disable_adapter`, `set_adapter` and `modules_to_save` work as for
LoRA. PEFT's own `register_peft_method` refuses names it does not ship, so the method is entered
into the dictionaries of `peft.mapping`.

`register()` may run at the end of the first `import peft`, which may be in the middle of importing
any other module of this package. So nothing here imports PEFT or a sibling when it is imported, and
what stands in PEFT's dictionaries finds its class at first use.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

    from clmoe.model.config import ClmoeConfig

NAME = "CLMOE"
PREFIX = "clmoe_"


class _ClassAtFirstUse:
    """Stands for a class: PEFT calls it, or asks it for an attribute."""

    def __init__(self, module: str, name: str) -> None:
        self._where = (module, name)

    def _found(self) -> Any:
        module, name = self._where
        return getattr(import_module(module), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._found()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found(), name)


def register() -> None:
    """Make PEFT know the method; calling it again changes nothing."""
    from peft import mapping

    config = _ClassAtFirstUse("clmoe.model.config", "ClmoeConfig")
    tuner = _ClassAtFirstUse("clmoe.model.injection", "ClmoeModel")
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING.setdefault(NAME, config)
    mapping.PEFT_TYPE_TO_TUNER_MAPPING.setdefault(NAME, tuner)
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING.setdefault(NAME, PREFIX)


def attach(model: nn.Module, config: ClmoeConfig, *, adapter_name: str = "default") -> PeftModel:
    """Wrap a base model with an adapter, as `get_peft_model` does.

    Args:
        model: The base model; its linears are replaced in place and its parameters frozen.
        config: The adapter's configuration; `router_of` is filled in.
        adapter_name: PEFT's name of the adapter.
    """
    from peft import PeftModel

    register()
    with warnings.catch_warnings():
        # PEFT asks transformers for a property under its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return PeftModel(model, config, adapter_name=adapter_name)
