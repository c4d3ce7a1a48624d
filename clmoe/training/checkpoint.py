"""What a training needs to go on exactly where it stopped.

Random streams are named by the step, so no generator's state is kept. Parameters and moments that
are sharded over processes are gathered, so a checkpoint is whole whatever wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from clmoe.errors import ClmoeError
from clmoe.parallel.world import world


@dataclass
class TrainingState:
    """Everything that changes from step to step.

    Attributes:
        step: Optimizer steps done.
        losses: Mean loss per supervised token of every step done.
    """

    step: int
    losses: list[float]


def trainable_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Checkpoint:
    """The file that a training is continued from; every process calls both methods."""

    def __init__(
        self, path: Path | None, *, model: nn.Module, optimizer: Any, schedule: Any, strategy: Any
    ) -> None:
        """Keep the state of these in ``path``; with None nothing is kept."""
        self._path, self._model, self._strategy = path, model, strategy
        self._optimizer, self._schedule = optimizer, schedule

    def save(self, state: TrainingState) -> None:
        """Write the state beside the file, then put it in its place in one step."""
        if self._path is None:
            return
        content: dict[str, Any] = {
            "step": state.step,
            "losses": state.losses,
            "parameters": {n: _whole(p) for n, p in trainable_tensors(self._model).items()},
            "optimizer": _each_tensor(self._optimizer.state_dict(), _whole),
            "schedule": self._schedule.state_dict(),
            "strategy": self._strategy.moving(),
        }
        if not world().leads:
            return
        partial = self._path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)

    def load(self) -> TrainingState | None:
        """Restore a checkpoint in place; None where there is none.

        Raises:
            ClmoeError: The processes do not all see the same checkpoint.
            ValueError: The checkpoint holds other parameters than the model trains.
        """
        content: dict[str, Any] | None = None
        if self._path is not None and self._path.exists():
            content = torch.load(self._path, map_location="cpu", weights_only=True)
        steps = world().gather(None if content is None else content["step"])
        if len(set(steps)) > 1:
            raise ClmoeError(
                f"the processes found checkpoints of different steps: {steps}",
                hint="all of them must see the same runs folder",
            )
        if content is None:
            return None
        parameters = trainable_tensors(self._model)
        _restore(parameters, content["parameters"])
        shards = list(parameters.values())
        moments = content["optimizer"]["state"]
        for place, state in moments.items():
            moments[place] = _each_tensor(state, lambda t, p=shards[place]: _like(t, p))
        self._optimizer.load_state_dict(content["optimizer"])
        self._schedule.load_state_dict(content["schedule"])
        self._strategy.restore(content["strategy"])
        return TrainingState(step=content["step"], losses=content["losses"])


def _whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def _like(saved: Tensor, parameter: Tensor) -> Tensor:
    """The saved tensor, sharded as the parameter is where it has its shape."""
    if isinstance(parameter, DTensor) and saved.shape == parameter.shape:
        placed = saved.to(parameter.device)
        return distribute_tensor(placed, parameter.device_mesh, parameter.placements)
    return saved


def _each_tensor(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_tensor(item, change) for key, item in value.items()}
    return [_each_tensor(item, change) for item in value] if isinstance(value, list) else value


def _restore(parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    if parameters.keys() != saved.keys():
        odd = sorted(parameters.keys() ^ saved.keys())
        raise ValueError(f"the checkpoint and the model differ in {len(odd)} parameters: {odd[:3]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_like(saved[name], parameter))
