"""Continual visual question answering with CL-MoE (arXiv 2503.00413).

Importing this package makes PEFT know the method ``CLMOE``, without importing PEFT or torch
itself: the method is registered when PEFT is (or at once, where it was imported before).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clmoe import _peft_registration

if TYPE_CHECKING:
    from clmoe.interop.bundle import load
    from clmoe.model.config import ClmoeConfig
    from clmoe.stages.export import export

__all__ = ["ClmoeConfig", "export", "load"]
__version__ = "0.1.0"

_LAZY = {
    "ClmoeConfig": "clmoe.model.config",
    "export": "clmoe.stages.export",
    "load": "clmoe.interop.bundle",
}
_peft_registration.install()


def __getattr__(name: str) -> Any:
    """Import a public name at first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'clmoe' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
