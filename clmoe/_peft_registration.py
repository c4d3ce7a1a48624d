"""Registering the method when PEFT is imported, so that ``import clmoe`` stays quick.

PEFT looks methods up in dictionaries that exist only once it is imported, and importing it imports
torch. So a finder waits for the import of ``peft`` and completes it with ``register()``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


class _AfterPeft(MetaPathFinder):
    """Finds ``peft`` once, with a loader that registers the method when it is done."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("peft")
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


def install() -> None:
    """Register the method now where PEFT is imported already, else when it will be."""
    if "peft" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterPeft())


def _register() -> None:
    from clmoe.model.tuner import register

    register()
