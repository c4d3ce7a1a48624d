"""The processes that share one command: who leads, who does which share, what all of them know.

Tensors of a training travel through Accelerate. What is exchanged here (rows, answers, sums of
gates, announcements) is small, so it goes over gloo on every device, and waits as long as it must:
the leading process may spend an hour on something of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from clmoe.errors import ClmoeError, UsageError
from clmoe.parallel.launch import ASKED, CPU, STARTED_BY_ACCELERATE, cpu_asked

Item = TypeVar("Item")
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class World:
    """This process among those that work on one command.

    Attributes:
        rank: Its number; 0 leads, and alone writes.
        size: How many there are.
        device: The device it was given; None where it works alone and chooses itself.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    _group: Any = field(default=None, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this process holds locks, writes files and speaks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every ``size``-th item: this process's part, the leading one's being the largest."""
        return list(items[self.rank :: self.size])

    def gather(self, value: Item) -> list[Item]:
        """What every process gave, in the order of ranks, on every process."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def tell(self, value: Item) -> Item:
        """What the leading process gave, on every process."""
        if self.size == 1:
            return value
        told: list[Any] = [value]
        dist.broadcast_object_list(told, src=0, group=self._group)
        return told[0]  # type: ignore[no-any-return]


_current = World()


def world() -> World:
    """The world of this process; of size 1 unless `join` found others."""
    return _current


def join() -> World:
    """Meet the processes that a launcher started beside this one, if any.

    Raises:
        ClmoeError: Another number of processes came than was asked for.
        UsageError: They were started for GPUs, and there are none.
    """
    global _current
    size, asked = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get(ASKED)
    if asked is not None and int(asked) != size:
        raise ClmoeError(
            f"{asked} processes were asked for, but {size} started",
            hint="start them with `clmoe train --processes N`, or with torchrun on a CPU: "
            "Accelerate's launcher starts a single process there",
        )
    if size == 1 or _current.size == size:
        return _current
    on_cpu = cpu_asked() or not torch.cuda.is_available()
    if on_cpu and STARTED_BY_ACCELERATE in os.environ and not cpu_asked():
        raise UsageError(
            f"Accelerate's launcher started {size} processes for GPUs, but PyTorch finds no GPU",
            hint=f"clmoe ... --processes {size} without Accelerate's launcher runs on a CPU; "
            f"so does {CPU}=true",
        )
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu)
    if state.num_processes != size:
        raise ClmoeError(
            f"{size} processes were launched, but they found {state.num_processes} of each other"
        )
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    device = state.device if state.device.type != "cpu" else torch.device("cpu")
    _current = World(rank=state.process_index, size=size, device=device, _group=group)
    return _current


def part() -> None:
    """Leave the others, when the command is done."""
    global _current
    if _current.size > 1:
        dist.destroy_process_group()
    _current = World()
