"""Small adapter folders made by hand, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

P = "base_model.model."
LINEARS = ("layers.0.mlp.gate", "layers.0.mlp.down", "layers.10.mlp.gate")
ROUTERS = {  # the linear -> the linear that holds its router
    "layers.0.mlp.gate": "layers.0.mlp.gate",
    "layers.0.mlp.down": "layers.0.mlp.gate",
    "layers.10.mlp.gate": "layers.10.mlp.gate",
}
EXPERTS, RANK = 4, 8


def config(**changes: object) -> dict:
    return {
        "peft_type": "CLMOE",
        "experts": EXPERTS,
        "r": RANK,
        "alpha": 16.0,
        "targets": "ffn",
        "routers": "per-block",
        "router_of": ROUTERS,
        "modules_to_save": None,
        "base_model_name_or_path": "some/base",
        "router_std": 0.02,
    } | changes


def tensors(seed: int, *, dtype: torch.dtype = torch.float32, projector: bool = False) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    found: dict[str, Tensor] = {}
    for linear, (wide, tall) in zip(LINEARS, ((12, 20), (20, 12), (12, 20)), strict=True):
        found[f"{P}{linear}.clmoe_A.weight"] = normal(RANK, wide)
        found[f"{P}{linear}.clmoe_B.weight"] = normal(tall, RANK)
    for router in sorted(set(ROUTERS.values())):
        found[f"{P}{router}.clmoe_router.weight"] = normal(EXPERTS, 12).float()
    if projector:
        found[f"{P}projector.linear.weight"] = normal(5, 7)
    return found


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter folder from tensors and changes of its configuration."""

    def write(name: str, content: dict[str, Tensor], **changes: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file(content, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config(**changes)))
        return folder

    return write


@pytest.fixture
def make_tensors() -> Callable[..., dict[str, Tensor]]:
    return tensors
