"""What the processes of the tests beside this file do; each function runs in every one of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard

from clmoe.baselines.base import Strategy
from clmoe.model.adapter_file import adapter_tensors, load_adapter, save_adapter
from clmoe.model.backbone import load_backbone
from clmoe.model.config import ClmoeConfig
from clmoe.model.targets import decoder_blocks
from clmoe.model.tuner import attach
from clmoe.parallel.world import join, part, world
from clmoe.recipe.schema import Base, Train
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.checkpoint import Checkpoint, TrainingState, trainable_tensors
from clmoe.training.optimizer import make_optimizer

SIZE = 2


def start(work: Callable[..., None], *arguments: Any) -> None:
    """Run a function of this file in two processes over gloo and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _begin, args=(port, work, arguments), nprocs=SIZE, start_method="spawn"
    )


def _begin(rank: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(SIZE),
        "LOCAL_WORLD_SIZE": str(SIZE),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "OMP_NUM_THREADS": "1",
    }
    join()
    work(*arguments)
    part()


def exchange(folder: Path) -> None:
    """Shares, gathering and telling."""
    ours = world()
    assert (ours.size, ours.leads) == (SIZE, ours.rank == 0)
    assert ours.share("abcde") == [["a", "c", "e"], ["b", "d"]][ours.rank]
    assert ours.gather(ours.rank * 10) == [0, 10]
    assert ours.tell({"from": ours.rank}) == {"from": 0}
    (folder / f"{ours.rank}").touch()


def small_model(*, seed: int) -> Any:
    """The built-in base with an adapter whose B are no zeros."""
    config = ClmoeConfig(experts=4, r=8, alpha=16.0, init_seed=seed)
    model = attach(load_backbone(Base()).model, config)
    for name, parameter in model.named_parameters():
        if "clmoe_B" in name:
            generator = torch.Generator().manual_seed(len(name) + seed)
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def sharded(*, seed: int) -> Any:
    """The same model with its blocks and the rest sharded over the processes."""
    model = small_model(seed=seed)
    for block in decoder_blocks(model.get_base_model()).values():
        fully_shard(block)
    fully_shard(model)
    return model


def save_shards(folder: Path) -> None:
    """Save an adapter from sharded parameters; only the leading process writes."""
    model = sharded(seed=1)
    local = next(iter(trainable_tensors(model).values()))
    assert type(local).__name__ == "DTensor"
    assert local.to_local().numel() < local.numel()
    target = folder if world().leads else folder / "nobody-writes-here"
    save_adapter(model, target, write=world().leads)


def continue_shards(path: Path) -> None:
    """A checkpoint of a sharded training holds whole tensors and is restored to shards."""
    model = sharded(seed=1)
    optimizer, schedule = make_optimizer(
        trainable_tensors(model).values(), settings=Train(lr=1e-2), steps=4
    )
    for parameter in trainable_tensors(model).values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    saved = Checkpoint(
        path, model=model, optimizer=optimizer, schedule=schedule, strategy=Strategy(Settings())
    )
    saved.save(TrainingState(step=1, losses=[0.5]))
    torch.distributed.barrier()
    other = sharded(seed=2)
    fresh, plan = make_optimizer(
        trainable_tensors(other).values(), settings=Train(lr=1e-2), steps=4
    )
    state = Checkpoint(
        path, model=other, optimizer=fresh, schedule=plan, strategy=Strategy(Settings())
    ).load()
    assert state == TrainingState(step=1, losses=[0.5])
    expected = adapter_tensors(model)
    for name, tensor in adapter_tensors(other).items():
        assert torch.equal(tensor, expected[name]), name
    for mine, theirs in zip(fresh.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"].full_tensor(), theirs["exp_avg"].full_tensor())


def reload(folder: Path) -> Any:
    """The adapter that `save_shards` wrote, on a fresh base."""
    return load_adapter(load_backbone(Base()).model, folder)
