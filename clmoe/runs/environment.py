"""Versions, platform and commit of the code, for a manifest; imports nothing heavy."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "clmoe", "torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn", "pillow",
    "numpy", "safetensors", "tokenizers", "pydantic",
)  # fmt: skip


@lru_cache(maxsize=1)
def _fixed() -> dict[str, Any]:
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "commit": code_commit(),
    }


def environment(*, device: str | None = None) -> dict[str, Any]:
    """What the results were made with.

    Args:
        device: The device that was used, where the caller knows it.
    """
    return {**_fixed(), "device": device, "argv": list(sys.argv)}


def code_commit() -> str | None:
    """The git commit of the checkout that holds this code, or None outside one."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
