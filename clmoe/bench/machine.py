"""The machine of a measurement: device, dtype, versions, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from clmoe.bench.timing import Work
from clmoe.errors import UsageError, did_you_mean

PACKAGES = ("clmoe", "torch", "transformers", "peft", "accelerate")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}


def find_device(name: str | None) -> torch.device:
    """The device that was named, or the GPU where there is one.

    Raises:
        UsageError: There is no such device.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device", hint="--device cuda, or --device cpu") from error
    if device.type not in ("cuda", "cpu"):
        raise UsageError(f"measuring on {name} is not supported", hint="--device cuda, or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"{name} was asked for, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} GPUs",
            hint="--device cpu, or install a torch build for this machine's GPU",
        )
    return device


def find_dtype(name: str | None, *, device: torch.device) -> torch.dtype:
    """The dtype that was named, or bfloat16 on a GPU and float32 on a CPU.

    Raises:
        UsageError: The name is not known.
    """
    if name is None or name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UsageError(
            f"{name!r} is no dtype to measure{did_you_mean(name, DTYPES)}",
            hint=f"--dtype is one of {', '.join(DTYPES)}",
        )
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without `torch.`."""
    return str(dtype).removeprefix("torch.")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads: what a figure needs beside it to mean something."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": str(device),
        "device_name": _device_name(device),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
        found["device_bytes"] = torch.cuda.get_device_properties(device).total_memory
        found["tf32"] = torch.get_float32_matmul_precision() != "highest"
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            named = [line for line in lines if line.startswith("model name")]
        return named[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def matmul(*, device: torch.device, dtype: torch.dtype) -> tuple[Work, int]:
    """A large square matrix product, the yardstick of this device; and its operations."""
    side = MATMUL_SIDE[device.type]
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty(side, side, device=device, dtype=dtype)
    return Work(lambda: torch.mm(left, right, out=out)), 2 * side**3


def count_flops(run: Callable[[], object]) -> int:
    """Run once, and return the operations of all its matrix products and attentions.

    What gradient checkpointing computes a second time counts again.
    """
    aten = torch.ops.aten
    # The counter that comes with torch knows the attention kernels of GPUs only.
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return int(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    count = sdpa_backward_flop_count(gradient, query, key, value)  # type: ignore[no-untyped-call]
    return int(count)
