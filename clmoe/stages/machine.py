"""What this machine has: versions, processors, memory, graphics cards, disk."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

PACKAGES = (
    "clmoe", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes",
    "flash-attn", "torchvision",
)  # fmt: skip
_LIMIT_OF_A_CONTAINER = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Gpu:
    """A graphics card; memory in bytes."""

    name: str
    total: int
    free: int
    bfloat16: bool


@dataclass(frozen=True)
class Machine:
    """This machine; memory and disk in bytes.

    Attributes:
        versions: Python and packages, None where not installed.
        cores: CPU cores that this process may use.
        memory: Of the machine, or of the container that limits it.
        available: Memory that is free or can be freed.
        gpus: The graphics cards.
        disks: What each folder is for -> the folder and what is free there.
    """

    versions: dict[str, str | None]
    cores: int
    memory: int
    available: int
    gpus: tuple[Gpu, ...]
    disks: dict[str, tuple[Path, int]]

    @property
    def torchvision(self) -> bool:
        """Whether processors of pictures can use torchvision."""
        return importlib.util.find_spec("torchvision") is not None

    def room(self, device: torch.device) -> int:
        """Bytes that are free on a device."""
        if device.type == "cuda" and self.gpus:
            return self.gpus[device.index or 0].free
        return self.available


def look_at_machine(folders: dict[str, Path]) -> Machine:
    """Ask the system; a folder that does not exist yet counts as the one it will stand in."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    if _LIMIT_OF_A_CONTAINER.is_file():
        limit = _LIMIT_OF_A_CONTAINER.read_text(encoding="ascii").strip()
        if limit.isdigit():
            total, available = min(total, int(limit)), min(available, int(limit))
    return Machine(
        versions={"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        cores=_cores(),
        memory=total,
        available=available,
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())),
        disks={what: (folder, _free(folder)) for what, folder in folders.items()},
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu(index: int) -> Gpu:
    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Gpu(torch.cuda.get_device_name(index), total, free, bool(bfloat16))


def _free(folder: Path) -> int:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
