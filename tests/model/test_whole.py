"""Modules trained whole: float32 in any base, and the base's own come back on unloading."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from clmoe.model.adapter_file import load_adapter, save_adapter
from clmoe.model.adapter_info import WEIGHTS_FILE

PROJECTOR = "multi_modal_projector"


def projector(model: Any, *, trained: bool) -> dict[str, Tensor]:
    """The trained copy of the projector, or the base's own, by name inside it."""
    part = f"{PROJECTOR}.{'modules_to_save.default' if trained else 'original_module'}."
    found = {n.partition(part)[2]: p for n, p in model.named_parameters() if part in n}
    assert len(found) == 4
    return found


def own(base: Any) -> dict[str, Tensor]:
    """A copy of the projector of a base without adapter."""
    module = base.get_submodule(f"model.{PROJECTOR}")
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def move(model: Any, *, by: float = 0.5) -> None:
    with torch.no_grad():
        for parameter in projector(model, trained=True).values():
            parameter.add_(by)


def half(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"pixel_values": batch["pixel_values"].bfloat16()}


@pytest.fixture
def attach_whole(attach: Callable[..., Any]) -> Callable[..., Any]:
    return lambda base, **fields: attach(base, modules_to_save=[PROJECTOR], **fields)


def test_unloading_gives_the_bases_own_projector_back(
    llava: Any, batch: dict[str, Tensor], attach_whole: Callable[..., Any]
) -> None:
    before, logits = own(llava), llava(**batch).logits
    model = attach_whole(llava)
    move(model)
    base = model.unload()
    assert same(own(base), before)
    assert torch.equal(base(**batch).logits, logits)
    assert not any(parameter.requires_grad for parameter in base.parameters())
    again = attach_whole(base)
    assert same(projector(again, trained=True), before)
    move(again)
    with again.disable_adapter():
        assert torch.equal(again(**batch).logits, logits)
    assert same(own(again.unload()), before)


def test_unloading_while_adapters_are_off_or_several(
    llava: Any, attach_whole: Callable[..., Any]
) -> None:
    before = own(llava)
    model = attach_whole(llava)
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    move(model)
    model.set_adapter("other")
    with model.disable_adapter():
        base = model.unload()
    assert same(own(base), before)


def test_trained_in_float32_in_a_half_precision_base(
    llava: Any, batch: dict[str, Tensor], attach_whole: Callable[..., Any]
) -> None:
    base = llava.to(torch.bfloat16)
    before = base(**half(batch)).logits
    model = attach_whole(base)
    trained = projector(model, trained=True)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in projector(model, trained=False).values()} == {torch.bfloat16}
    output = model(**half(batch)).logits
    assert output.dtype is torch.bfloat16
    output.float().sum().backward()
    assert {p.grad.dtype for p in trained.values() if p.grad is not None} == {torch.float32}
    with torch.no_grad():  # a step too small for bfloat16 counts
        for parameter in trained.values():
            parameter.mul_(1 + 2**-12)
    moved = {n: p.detach().float() - own_p for n, (p, own_p) in _pairs(model).items()}
    weights = [change for name, change in moved.items() if name.endswith("weight")]  # biases are 0
    assert len(weights) == 2
    assert all(bool((change != 0).any()) for change in weights)
    with model.disable_adapter():
        assert torch.equal(model(**half(batch)).logits, before)


def _pairs(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    trained, kept = projector(model, trained=True), projector(model, trained=False)
    return {name: (trained[name], kept[name].float()) for name in trained}


def test_the_copy_computes_in_float32_between_casts(
    llava: Any, attach_whole: Callable[..., Any]
) -> None:
    model = attach_whole(llava.to(torch.bfloat16))
    wrapper = model.get_base_model().get_submodule(f"model.{PROJECTOR}")
    x = torch.randn(2, 4, 24).bfloat16()
    reference = copy.deepcopy(wrapper.original_module).float()
    wanted = reference(x.float())
    assert torch.equal(wrapper(x), wanted.bfloat16())
    assert not torch.equal(wanted.bfloat16(), wrapper.original_module(x))


def test_nothing_is_cast_in_a_float32_base(llava: Any, attach_whole: Callable[..., Any]) -> None:
    wrapper = attach_whole(llava).get_base_model().get_submodule(f"model.{PROJECTOR}")
    copied = wrapper.modules_to_save["default"]
    assert not copied._forward_pre_hooks
    assert not copied._forward_hooks


@pytest.mark.parametrize("way", ["clmoe", "peft"])
def test_saved_in_float32_and_loaded_to_the_bit(
    llava: Any,
    batch: dict[str, Tensor],
    attach_whole: Callable[..., Any],
    tmp_path: Path,
    way: str,
) -> None:
    base = llava.to(torch.bfloat16)
    untouched = copy.deepcopy(base)
    model = attach_whole(base)
    move(model, by=1e-4)
    if way == "clmoe":
        save_adapter(model, tmp_path)
        loaded: Any = load_adapter(untouched, tmp_path)
    else:
        model.save_pretrained(str(tmp_path))
        loaded = PeftModel.from_pretrained(untouched, str(tmp_path))
    stored = load_file(tmp_path / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert same(projector(loaded, trained=True), projector(model, trained=True))
    assert torch.equal(loaded.eval()(**half(batch)).logits, model(**half(batch)).logits)
    assert torch.equal(copy.deepcopy(loaded)(**half(batch)).logits, loaded(**half(batch)).logits)


def test_an_adapter_beside_another_is_float32_too(
    llava: Any, batch: dict[str, Tensor], attach_whole: Callable[..., Any], tmp_path: Path
) -> None:
    model = attach_whole(llava.to(torch.bfloat16))
    move(model)
    save_adapter(model, tmp_path)
    expected = model(**half(batch)).logits
    load_adapter(model, tmp_path, adapter_name="second")
    assert model.active_adapters == ["second"]
    assert torch.equal(model(**half(batch)).logits, expected)
