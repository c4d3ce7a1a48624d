"""Adapters made by our own merge, beside the folders of `layouts`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from clmoe.method.expert_roles import ExpertRoles, assign_roles
from tests.method.conftest import config, tensors

FIRST, SECOND = "layers.0.mlp.gate", "layers.10.mlp.gate"


def roles_for(gamma: float) -> dict[str, ExpertRoles]:
    """At the first router expert 1 is specific, at the second expert 3."""
    return assign_roles(
        {FIRST: (0, 1), SECOND: (3,)},
        previous=[{FIRST: (0,), SECOND: (1,)}, {FIRST: (2,), SECOND: (1,)}],
        experts=4,
        gamma=gamma,
    )


@pytest.fixture
def ours(tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter of this project: four experts, three linears, two routers."""

    def write(name: str, seed: int, *, content: Any = None, **changes: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        held = tensors(seed, projector=bool(changes.get("modules_to_save")))
        save_file(held if content is None else content, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config(**changes)))
        return folder

    return write
