"""What a training needs to go on exactly where it stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


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


def save_checkpoint(
    path: Path, *, state: TrainingState, model: nn.Module, optimizer: Any, schedule: Any
) -> None:
    """Write a checkpoint beside ``path``, then put it in its place in one step."""
    content: dict[str, Any] = {
        "step": state.step,
        "losses": state.losses,
        "parameters": {n: p.detach().clone() for n, p in trainable_tensors(model).items()},
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "cpu_rng": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        content["cuda_rng"] = torch.cuda.get_rng_state_all()
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(
    path: Path, *, model: nn.Module, optimizer: Any, schedule: Any
) -> TrainingState | None:
    """Restore a checkpoint in place; None where there is none.

    Raises:
        ValueError: The checkpoint holds other parameters than the model trains.
    """
    if not path.exists():
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    _restore(trainable_tensors(model), content["parameters"])
    optimizer.load_state_dict(content["optimizer"])
    schedule.load_state_dict(content["schedule"])
    torch.set_rng_state(content["cpu_rng"])
    if "cuda_rng" in content and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(content["cuda_rng"])
    return TrainingState(step=content["step"], losses=content["losses"])


def _restore(parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    if parameters.keys() != saved.keys():
        odd = sorted(parameters.keys() ^ saved.keys())
        raise ValueError(f"the checkpoint and the model differ in {len(odd)} parameters: {odd[:3]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
