"""The memory that a piece of work takes beyond what was there before.

On a GPU the allocator knows its peak. On a CPU every tensor is watched that an operation of the
work makes (forward, backward and optimizer): its bytes count from then until it is freed. What a
kernel allocates and frees inside itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA_MEASURE = "peak of torch.cuda.max_memory_allocated above memory_allocated before"
CPU_MEASURE = "most bytes at once of the tensors that the work's operations made"


def memory_measure(device: torch.device) -> str:
    """Say in words what `peak_bytes` measures on a device."""
    return CUDA_MEASURE if device.type == "cuda" else CPU_MEASURE


def peak_bytes(run: Callable[[], object], *, device: torch.device) -> int:
    """Run once, and return the peak of the memory it takes above what was there, in bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with TensorBytes() as made:
        run()
    peak: int = made.peak
    return peak


class TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the tensors that operations make inside the block.

    Attributes:
        live: Bytes of those that exist now.
        peak: The largest `live` so far.
    """

    def __init__(self) -> None:
        """Start with nothing watched."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._watched: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and watch what it returns, unless that is a view of what it got."""
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "cpu":
                address = _address(leaf)
                if address and address not in given and address not in self._watched:
                    self._watch(leaf.untyped_storage(), address)
        return result

    def _watch(self, storage: torch.UntypedStorage, address: int) -> None:
        size = storage.nbytes()
        self._watched.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, address, size).atexit = False

    def _forget(self, address: int, size: int) -> None:
        self._watched.discard(address)
        self.live -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
