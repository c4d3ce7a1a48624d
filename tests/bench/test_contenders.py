"""What is measured side by side computes the same thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from clmoe.bench.contenders import LOOP, LORA, LORA_FLOAT32, OURS, Mixture, adapted, wake
from clmoe.bench.expert_loop import LoopLinear
from clmoe.bench.layer import host
from clmoe.model.layer import MixtureLinear

CPU = torch.device("cpu")


@pytest.fixture
def base() -> Any:
    model = host(16, 24, device=CPU, dtype=torch.float32)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def contenders(base: Any, mixture: Mixture) -> dict[str, Any]:
    return dict(adapted(base, mixture))


def copy_experts(ours: nn.Module, loop: nn.Module) -> None:
    """Give the loop's experts the slices of ours, and its routers ours."""
    for path, layer in ours.named_modules():
        if not isinstance(layer, MixtureLinear):
            continue
        twin = loop.get_submodule(path)
        assert isinstance(twin, LoopLinear)
        rank = layer.rank["default"] // layer.experts["default"]
        with torch.no_grad():
            for i, (down, up) in enumerate(zip(twin.down, twin.up, strict=True)):
                rows = slice(i * rank, (i + 1) * rank)
                down.weight.copy_(layer.clmoe_A["default"].weight[rows])
                up.weight.copy_(layer.clmoe_B["default"].weight[:, rows])
            for name, router in layer.clmoe_router.items():
                twin.clmoe_router[name].weight.copy_(router.weight)


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest entry, and not all next to nothing."""
    assert wanted.abs().max() > 0.1
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("routers", ["per-block", "per-linear"])
def test_the_loop_computes_what_ours_computes(base: Any, routers: str) -> None:
    found = contenders(base, Mixture(rank=8, experts=4, routers=routers))
    ours, loop = found[OURS], found[LOOP]
    for name, parameter in ours.named_parameters():
        if "clmoe_router" in name or "clmoe_B" in name:
            nn.init.normal_(parameter, std=0.4)  # gates that are far from uniform
    copy_experts(ours, loop)
    x = torch.randn(2, 5, 16)
    outs, inputs = [], []
    for model in (ours, loop):
        given = x.clone().requires_grad_()
        out = model.get_base_model().model.layers[0].mlp(given)
        out.square().sum().backward()
        outs.append(out)
        inputs.append(given.grad)
    assert_same(outs[0], outs[1])
    assert_same(inputs[0], inputs[1])
    for path, layer in ours.named_modules():
        if isinstance(layer, MixtureLinear):
            twin = loop.get_submodule(path)
            down = torch.cat([one.weight.grad for one in twin.down], dim=0)
            up = torch.cat([one.weight.grad for one in twin.up], dim=1)
            a, b = layer.clmoe_A["default"].weight.grad, layer.clmoe_B["default"].weight.grad
            assert_same(a, down)
            assert_same(b, up)
            for name, router in layer.clmoe_router.items():
                assert_same(router.weight.grad, twin.clmoe_router[name].weight.grad)


def test_plain_lora_computes_what_one_expert_computes(base: Any) -> None:
    found = contenders(base, Mixture(rank=8, experts=1))
    ours, lora = found[OURS], found[LORA]
    wake(ours)
    pairs = []
    for path, layer in ours.named_modules():
        if isinstance(layer, MixtureLinear):
            twin = lora.get_submodule(path)
            pairs += [
                (layer.clmoe_A["default"].weight, twin.lora_A["default"].weight),
                (layer.clmoe_B["default"].weight, twin.lora_B["default"].weight),
            ]
    assert len(pairs) == 6
    with torch.no_grad():
        for mine, theirs in pairs:
            theirs.copy_(mine)
    ids = torch.randint(0, 8, (2, 5))
    losses = []
    for model in (ours, lora):
        losses.append(model(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    for mine, theirs in pairs:
        assert mine.grad.any()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_all_share_the_frozen_weights_and_train_as_many(base: Any) -> None:
    frozen = {p.data_ptr() for p in base.parameters()}
    trained = {}
    for name, model in contenders(base, Mixture(rank=8, experts=4)).items():
        assert {p.data_ptr() for p in model.parameters() if not p.requires_grad} == frozen, name
        trained[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    linears = 8 * (16 + 24) * 3
    assert trained == {LORA: linears, LOOP: linears + 4 * 16, OURS: linears + 4 * 16}
    assert not any(isinstance(module, MixtureLinear) for module in base.modules())


def test_below_float32_there_is_peft_s_own_lora_too() -> None:
    base = host(16, 24, device=CPU, dtype=torch.bfloat16)
    found = contenders(base, Mixture(rank=8, experts=4))
    dtypes = {
        name: {p.dtype for n, p in model.named_parameters() if p.requires_grad}
        for name, model in found.items()
    }
    assert dtypes == {
        LORA: {torch.bfloat16},
        LORA_FLOAT32: {torch.float32},
        LOOP: {torch.bfloat16, torch.float32},  # experts, routers
        OURS: {torch.float32},
    }
