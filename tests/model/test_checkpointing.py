"""Gradients are the same without gradient checkpointing, and with either kind of it."""

from __future__ import annotations

import copy

import pytest
import torch

from clmoe.model.checkpointing import enable_checkpointing


def gradients(model, inputs, *, checkpointing):
    model = copy.deepcopy(model).train()
    if checkpointing is not None:
        enable_checkpointing(model, reentrant=checkpointing)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 63, -100)
    loss = model(**inputs, labels=labels, use_cache=False).loss
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if "clmoe_" in n}
    assert all(grad is not None and grad.any() for grad in found.values())
    return loss.detach(), found


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"routers": "per-linear"},
        {"targets": "all-linear"},
        {"experts": 1},
        {"modules_to_save": ["multi_modal_projector"]},
    ],
    ids=["per-block", "per-linear", "all-linear", "one-expert", "projector"],
)
def test_gradients_do_not_depend_on_checkpointing(llava, batch, attach, fields, reentrant):
    model = attach(llava, **fields)
    loss, plain = gradients(model, batch, checkpointing=None)
    again, found = gradients(model, batch, checkpointing=reentrant)
    torch.testing.assert_close(again, loss, atol=0, rtol=1e-6)
    assert found.keys() == plain.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(found[name], grad, atol=1e-7, rtol=1e-5, msg=name)


def test_no_gate_outlives_a_step(llava, batch, attach):
    model = attach(llava).train()
    enable_checkpointing(model)
    model(**batch, labels=batch["input_ids"].clamp(max=62), use_cache=False).loss.backward()
    assert not any(module.gates for module in model.modules() if hasattr(module, "gates"))
    copy.deepcopy(model)
