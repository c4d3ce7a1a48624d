"""A training whose parameters are sharded is the training of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clmoe.baselines.base import WITH_SHARDS
from clmoe.baselines.registry import STRATEGIES
from clmoe.model.adapter_file import adapter_tensors, load_adapter
from clmoe.model.backbone import load_backbone
from clmoe.recipe.schema import Base
from tests.parallel import ranks, sharding


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    sharding.draw(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="features"),
        pytest.param({"micro_batch": 2, "clip": 0}, id="accumulation"),
        pytest.param({"projector": True}, id="trained projector"),
        pytest.param({"kind": "er", "micro_batch": "auto"}, id="replay"),
    ],
)
def test_a_sharded_training_equals_that_of_one_process(
    pictures: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    ranks.start(sharding.train_shards, pictures, tmp_path, settings)
    model, log = sharding.train(pictures, **settings)
    losses = torch.load(tmp_path / "losses.pt")
    assert losses == pytest.approx(log.losses, rel=1e-5)
    assert losses[-2] < losses[0]
    expected = adapter_tensors(model)
    found = adapter_tensors(load_adapter(load_backbone(Base()).model, tmp_path / "adapter"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).norm() / tensor.norm()) <= 1e-4, name


@pytest.mark.slow
def test_methods_that_need_whole_parameters_are_refused(pictures: Path, tmp_path: Path) -> None:
    kinds = sorted(STRATEGIES.keys() - {*WITH_SHARDS, "vs"})  # whose steps are never divided
    ranks.start(sharding.refuse_methods, pictures, kinds, tmp_path)
    for kind in kinds:
        for rank in range(ranks.SIZE):
            said, hint = (tmp_path / f"{kind}-{rank}").read_text().splitlines()
            assert said.startswith(f"strategy.kind={kind} needs ")
            assert "FSDP" in said
            assert "plain copies" in hint
