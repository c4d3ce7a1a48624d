"""Adapters as the model saves them: recorded, routed, merged, and loaded strictly again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from clmoe.method.expert_roles import assign_roles, single_expert_roles
from clmoe.method.momentum import merge_adapters
from clmoe.method.task_router import TaskRouterAccumulator, build_task_router
from clmoe.model.adapter_file import load_adapter, save_adapter
from clmoe.model.config import ClmoeConfig
from clmoe.model.control import record_gates, router_names
from clmoe.model.tuner import attach


def model_with(experts: int, *, seed: int, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    model = attach(base, ClmoeConfig(experts=experts, r=8, alpha=16.0))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "clmoe_" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    save_adapter(model, folder)
    return model


@pytest.mark.parametrize("experts", [4, 1])
@pytest.mark.parametrize("space", ["factors", "product"])
def test_route_merge_and_load(tmp_path: Path, experts: int, space: str) -> None:
    chosen = []
    for task in (1, 2):
        model = model_with(experts, seed=task, folder=tmp_path / f"{task}")
        if experts == 1:
            continue
        accumulator = TaskRouterAccumulator()

        def add(router: str, gates: torch.Tensor, to: TaskRouterAccumulator = accumulator) -> None:
            to.add(router, gates=gates, mask=torch.ones(3, 5))

        with record_gates(model, add), torch.no_grad():
            model(input_ids=torch.randint(32, (3, 5)))
        router = build_task_router(accumulator, top_k=2, scope="per-layer", tokens="all")
        assert list(router.weights) == router_names(model)
        chosen.append(router.experts)
    roles = (
        single_expert_roles(gamma=0.7)
        if experts == 1
        else assign_roles(chosen[1], previous=chosen[:1], experts=experts, gamma=0.7)
    )
    report = merge_adapters(
        tmp_path / "1",
        current_dir=tmp_path / "2",
        out_dir=tmp_path / "merged",
        roles=roles,
        gamma=0.7,
        space=space,
    )
    assert report.factors.differ_from_previous == report.factors.total == 12
    assert report.routers.total == (0 if experts == 1 else 2)
    merged = load_adapter(model.unload(), tmp_path / "merged")
    assert merged(input_ids=torch.tensor([[1, 2]])).logits.isfinite().all()
