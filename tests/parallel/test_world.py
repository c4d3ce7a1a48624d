"""Processes that exchange, and adapters and checkpoints of sharded parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clmoe.errors import ClmoeError, UsageError
from clmoe.model.adapter_file import adapter_tensors
from clmoe.parallel.engine import check_engine
from clmoe.parallel.launch import ASKED, CPU, cpu_asked
from clmoe.parallel.world import World, join, world
from tests.parallel import ranks


def test_alone() -> None:
    assert world() == World(rank=0, size=1)
    assert world().leads
    assert world().share([1, 2, 3]) == [1, 2, 3]
    assert world().gather("x") == ["x"]
    assert world().tell(7) == 7
    assert join() == world()


@pytest.mark.slow
def test_exchange(tmp_path: Path) -> None:
    ranks.start(ranks.exchange, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.slow
def test_an_adapter_saved_from_shards_is_whole(tmp_path: Path) -> None:
    ranks.start(ranks.save_shards, tmp_path)
    assert not (tmp_path / "nobody-writes-here").exists()
    expected = adapter_tensors(ranks.small_model(seed=1))
    found = adapter_tensors(ranks.reload(tmp_path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_sharded_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    ranks.start(ranks.continue_shards, tmp_path / "c.pt")
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    whole = {p.shape for p in ranks.small_model(seed=1).parameters() if p.requires_grad}
    assert {tensor.shape for tensor in content["parameters"].values()} == whole


def test_fewer_processes_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASKED, "2")
    with pytest.raises(ClmoeError, match="2 processes were asked for, but 1 started"):
        join()


def test_processes_of_accelerates_launcher_that_find_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="started 2 processes for GPUs, but PyTorch finds no GPU"):
        join()
    monkeypatch.setenv(CPU, "False")
    with pytest.raises(UsageError, match="finds no GPU"):
        join()


@pytest.mark.parametrize(("value", "asked"), [("true", True), ("True", True), ("0", False)])
def test_a_request_for_the_cpu(monkeypatch: pytest.MonkeyPatch, value: str, asked: bool) -> None:
    assert not cpu_asked()
    monkeypatch.setenv(CPU, value)
    assert cpu_asked() is asked


class FakeAccelerator:
    """What Accelerate says of itself."""

    def __init__(self, kind: str, *, processes: int = 1, device: str = "cpu") -> None:
        self.distributed_type = type("Kind", (), {"value": kind})
        self.num_processes = processes
        self.device = torch.device(device)


def test_another_engine_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    check_engine(FakeAccelerator("NO"))
    with pytest.raises(ClmoeError, match="NO over 1 processes was asked for.*MULTI_CPU over 2"):
        check_engine(FakeAccelerator("MULTI_CPU", processes=2))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ClmoeError, match="FSDP over 1 processes was asked for, but .* made NO"):
        check_engine(FakeAccelerator("NO"))
    check_engine(FakeAccelerator("FSDP", device="cuda"))
