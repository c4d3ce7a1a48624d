"""Named random streams: one number per purpose, so that adding a purpose shifts no other."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *names: str | int) -> int:
    """Derive a 62-bit seed for one purpose, for example ``stream(0, "order", "recognition")``."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator for one named stream."""
    return torch.Generator().manual_seed(stream(seed, *names))
