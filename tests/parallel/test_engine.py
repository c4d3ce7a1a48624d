"""What an engine is told, what it must give back, and what it is refused for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from clmoe.errors import UsageError
from clmoe.parallel.engine import prepare, refuse_shards


class FakeEngine:
    """Accelerate as `prepare` uses it; with `instead` the optimizer moves other parameters."""

    def __init__(self, kind: str, *, processes: int = 2, instead: nn.Module | None = None) -> None:
        self.distributed_type = SimpleNamespace(value=kind)
        self.num_processes, self._instead = processes, instead
        self.config: dict[str, Any] = {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": 8,
            "zero_optimization": {"stage": 2},
        }
        plugin = SimpleNamespace(deepspeed_config=self.config)
        self.state = SimpleNamespace(deepspeed_plugin=plugin)

    def prepare(self, model: nn.Module, optimizer: Any) -> tuple[Any, Any]:
        if self._instead is not None:
            optimizer.param_groups[0]["params"] = list(self._instead.parameters())
        return model, optimizer


def prepared(engine: Any, *, micro_batch: int = 4) -> nn.Module:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([model.weight])
    found, _ = prepare(engine, model, optimizer, micro_batch=micro_batch, clip=0.5)
    assert isinstance(found, nn.Module)
    return found


def test_deepspeed_is_told_of_each_task_anew() -> None:
    """A replaying method doubles the step from the second task on."""
    engine = FakeEngine("DEEPSPEED")
    for micro in (4, 8):
        prepared(engine, micro_batch=micro)
        assert engine.config == {
            "train_batch_size": 2 * micro,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.5,
            "zero_optimization": {"stage": 2},
        }


def test_an_optimizer_that_moves_other_parameters_is_noticed() -> None:
    prepared(FakeEngine("FSDP"))
    for kind in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
        with pytest.raises(AssertionError, match="the optimizer moves other parameters"):
            prepared(FakeEngine(kind, instead=nn.Linear(2, 2)))
    prepared(FakeEngine("DEEPSPEED", instead=nn.Linear(2, 2)))  # its optimizer is its own


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_engines_that_may_shard_are_refused(kind: str) -> None:
    said = f"strategy.kind=ewc needs the whole parameters in every process, which {kind} does not"
    with pytest.raises(UsageError, match=said) as raised:
        refuse_shards(FakeEngine(kind), what="strategy.kind=ewc")
    assert raised.value.hint == (
        "train with plain copies: recipes/accelerate/multi_gpu.yaml, or --processes N"
    )


@pytest.mark.parametrize("kind", ["NO", "MULTI_CPU", "MULTI_GPU"])
def test_plain_copies_are_not(kind: str) -> None:
    refuse_shards(FakeEngine(kind), what="strategy.kind=ewc")
