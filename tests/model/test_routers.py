"""Equations 5 and 9, the gates of a whole model, and recording them."""

from __future__ import annotations

import math

import pytest
import torch

from clmoe.errors import ClmoeError
from clmoe.model.control import (
    inference_gates,
    record_gates,
    reset_routers,
    router_names,
    routers,
)
from clmoe.model.routers import Router, instance_gate, mix_gates


def recorded(model, inputs):
    """Return {router: gate} of one forward."""
    gates = {}
    with record_gates(model, gates.__setitem__), torch.no_grad():
        model(**inputs)
    return gates


def constant(model, row):
    return {name: torch.tensor(row) for name in router_names(model)}


def test_equation_5_by_hand():
    # x W_gate = (ln 1, ln 3): softmax (1/4, 3/4)
    weight = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    gate = instance_gate(torch.tensor([[1.0, 9.0]]), weight)
    torch.testing.assert_close(gate, torch.tensor([[0.25, 0.75]]))


def test_gate_is_float32_for_half_inputs_and_under_autocast():
    x, weight = torch.randn(2, 3, 16), torch.randn(4, 16)
    assert instance_gate(x.bfloat16(), weight).dtype is torch.float32
    exact = (x @ weight.T).softmax(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(instance_gate(x, weight), exact)


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (2, 3, 4, 16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_input_is_kept_as_it_came(shape, dtype):
    """The gradients of the plain formula, without its float32 copy of x."""
    gradient = torch.randn(*shape[:-1], 4)
    x = torch.randn(shape).to(dtype).requires_grad_()
    weight = torch.randn(4, 16, requires_grad=True)
    plain = torch.nn.functional.linear(x.float(), weight).softmax(-1)
    wanted = torch.autograd.grad(plain, (x, weight), gradient)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gate = instance_gate(x, weight)
    assert torch.equal(gate, plain)
    for got, expected in zip(torch.autograd.grad(gate, (x, weight), gradient), wanted, strict=True):
        assert got.dtype is expected.dtype
        assert torch.equal(got, expected)
    assert [t.dtype for t in kept if t.shape == x.shape] == [dtype]
    frozen = instance_gate(x.detach(), weight)
    assert torch.equal(torch.autograd.grad(frozen, weight, gradient)[0], wanted[1])


def test_equation_9_by_hand():
    mixed = mix_gates(torch.tensor([0.2, 0.8]), torch.tensor([1.0, 0.0]), beta=0.25)
    torch.testing.assert_close(mixed, torch.tensor([0.25 * 0.2 + 0.75, 0.25 * 0.8]))


def test_per_block_router_reads_the_mlps_input_and_is_shared(llava, batch, attach):
    inputs_of_mlp = {}
    model = attach(llava)
    for path, module in model.get_base_model().named_modules():
        if path.endswith("mlp") and "language_model" in path:
            module.register_forward_pre_hook(
                lambda _, args, path=path: inputs_of_mlp.__setitem__(path, args[0])
            )
    gates = recorded(model, batch)
    assert list(gates) == router_names(model)
    assert [name.rpartition(".")[0] for name in gates] == list(inputs_of_mlp)
    for name, gate in gates.items():
        x = inputs_of_mlp[name.rpartition(".")[0]]
        assert torch.equal(gate, instance_gate(x, routers(model)[name].weight))
        assert gate.shape == (2, 12, 4)
        torch.testing.assert_close(gate.sum(-1), torch.ones(2, 12))


def test_per_linear_routers_read_their_own_input(llava, batch, attach):
    model = attach(llava, routers="per-linear")
    names = router_names(model)
    assert len(names) == 6
    widths = {name.rpartition(".")[2]: routers(model)[name].weight.shape[1] for name in names}
    assert widths == {"gate_proj": 32, "up_proj": 32, "down_proj": 48}
    seen = {}
    base = model.get_base_model()
    for name in names:
        base.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0])
        )
    for name, gate in recorded(model, batch).items():
        assert torch.equal(gate, instance_gate(seen[name], routers(model)[name].weight))


def test_all_linear_per_block_has_a_router_for_attention_and_one_for_the_mlp(llava, batch, attach):
    model = attach(llava, targets="all-linear")
    parents = [name.split("layers.")[1] for name in router_names(model)]
    assert parents == [
        "0.self_attn.q_proj",
        "0.mlp.gate_proj",
        "1.self_attn.q_proj",
        "1.mlp.gate_proj",
    ]
    assert all(gate.shape == (2, 12, 4) for gate in recorded(model, batch).values())


def test_beta_one_ignores_the_task_weights_bit_for_bit(llava, batch, attach):
    model = attach(llava)
    plain = model(**batch).logits
    with inference_gates(model, constant(model, [1.0, 0.0, 0.0, 0.0]), beta=1.0):
        assert torch.equal(model(**batch).logits, plain)


def test_beta_zero_ignores_the_instance_router(llava, batch, attach):
    model = attach(llava)
    weights = constant(model, [0.1, 0.2, 0.3, 0.4])
    with inference_gates(model, weights, beta=0.0):
        before = model(**batch).logits
        for router in routers(model).values():
            with torch.no_grad():
                router.weight.fill_(float("nan"))
        assert torch.equal(model(**batch).logits, before)


def test_beta_mixes_per_sample(llava, batch, attach):
    model = attach(llava)
    names = router_names(model)
    rows = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    with inference_gates(model, dict.fromkeys(names, rows), beta=0.5):
        both = model(**batch).logits
    for sample in range(2):
        alone = {name: value[sample : sample + 1] for name, value in batch.items()}
        with inference_gates(model, dict.fromkeys(names, rows[sample]), beta=0.5):
            torch.testing.assert_close(
                both[sample : sample + 1], model(**alone).logits, atol=2e-5, rtol=1e-4
            )
    assert not torch.equal(both, model(**batch).logits)


def test_mixed_gate_equals_a_router_built_to_give_it(llava, batch, attach):
    """With zero router weights w_I is uniform, so Eq 9 is a constant known by hand."""
    model = attach(llava)
    for router in routers(model).values():
        with torch.no_grad():
            router.weight.zero_()
    with inference_gates(model, constant(model, [1.0, 0.0, 0.0, 0.0]), beta=0.4):
        mixed = model(**batch).logits
    with inference_gates(model, constant(model, [0.7, 0.1, 0.1, 0.1]), beta=0.0):
        torch.testing.assert_close(model(**batch).logits, mixed, atol=1e-5, rtol=1e-5)


def test_recording_is_of_the_instance_router_and_leaves_nothing_attached(llava, batch, attach):
    model = attach(llava)
    alone = recorded(model, batch)
    first = router_names(model)[0]
    with inference_gates(model, constant(model, [1.0, 0.0, 0.0, 0.0]), beta=0.0):
        assert torch.equal(recorded(model, batch)[first], alone[first])
    assert all(
        router.recorder is None and router.task_weights is None and router.beta == 1.0
        for router in routers(model).values()
    )
    assert not alone[first].requires_grad


def test_gates_are_detached_again_after_an_error(llava, batch, attach):
    model = attach(llava)
    plain = model(**batch).logits
    with (
        pytest.raises(ClmoeError, match="given for 3 samples, but the batch holds 2"),
        inference_gates(
            model, dict.fromkeys(router_names(model), torch.full((3, 4), 0.25)), beta=0.5
        ),
    ):
        model(**batch)
    assert torch.equal(model(**batch).logits, plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.popitem(), r"do not fit the adapter's 2 routers: 1 have none, 0 names"),
        (
            lambda w: w.update(other=torch.ones(4)),
            r"0 have none, 1 names are unknown \(first: other\)",
        ),
        (lambda w: w.update({next(iter(w)): torch.ones(3)}), r"shape \[3\]; expected \[4\]"),
    ],
)
def test_task_weights_must_fit_the_routers(llava, attach, change, message):
    model = attach(llava)
    weights = constant(model, [0.25] * 4)
    change(weights)
    with pytest.raises(ClmoeError, match=message), inference_gates(model, weights, beta=0.5):
        pass


def test_beta_out_of_range_and_training_mode_are_refused(llava, attach):
    model = attach(llava)
    with pytest.raises(ClmoeError, match="beta is 1.5"), inference_gates(model, {}, beta=1.5):
        pass
    model.train()
    with (
        pytest.raises(ClmoeError, match="training uses the instance router alone"),
        inference_gates(model, constant(model, [0.25] * 4), beta=0.5),
    ):
        pass


def test_generate_with_cache_uses_the_task_weights(llava, batch, attach):
    model = attach(llava)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    rows = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])
    with inference_gates(model, dict.fromkeys(router_names(model), rows), beta=0.3):
        cached = model.generate(**batch, use_cache=True, **options)
        uncached = model.generate(**batch, use_cache=False, **options)
    assert torch.equal(cached, uncached)


def test_reset_routers_is_decided_by_its_seed(llava, attach):
    model = attach(llava)
    reset_routers(model, std=0.5, seed=1)
    first = [router.weight.detach().clone() for router in routers(model).values()]
    reset_routers(model, std=0.5, seed=2)
    second = [router.weight.detach().clone() for router in routers(model).values()]
    reset_routers(model, std=0.5, seed=1)
    for router, one, other in zip(routers(model).values(), first, second, strict=True):
        assert torch.equal(router.weight, one)
        assert not torch.equal(one, other)
        assert 0.3 < float(one.std()) < 0.7


def test_one_expert_has_no_routers(llava, batch, attach):
    model = attach(llava, experts=1)
    assert router_names(model) == []
    assert recorded(model, batch) == {}
    with inference_gates(model, {}, beta=0.5):
        model(**batch)


def test_router_prints_its_sizes():
    assert repr(Router(torch.zeros(4, 16))) == "Router(in_features=16, experts=4)"
