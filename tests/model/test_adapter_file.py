"""Strict saving and loading: the same bits as PEFT's, and an error for anything amiss."""

from __future__ import annotations

import copy
import json
import sys
import types

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from clmoe.errors import ClmoeError
from clmoe.model.adapter_file import adapter_tensors, load_adapter, read_tensors, save_adapter
from clmoe.model.adapter_info import (
    a_key,
    b_key,
    natural_order,
    read_adapter_info,
    router_key,
)
from clmoe.model.control import router_names

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
MLP = "model.language_model.layers.{}.mlp.{}"


@pytest.fixture
def saved(llava, attach, tmp_path):
    """An adapter's folder, the model it came from, and the base without it."""
    base = copy.deepcopy(llava)
    model = attach(llava, modules_to_save=["multi_modal_projector"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter", model, base


def edit(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_tensor_names(saved):
    folder, _, _ = saved
    names = set(load_file(folder / "adapter_model.safetensors"))
    expected = set()
    for layer in range(2):
        for linear in ("gate_proj", "up_proj", "down_proj"):
            expected |= {a_key(MLP.format(layer, linear)), b_key(MLP.format(layer, linear))}
        expected.add(router_key(MLP.format(layer, "gate_proj")))
    projector = "base_model.model.model.multi_modal_projector.linear_"
    expected |= {f"{projector}{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert names == expected
    example = "base_model.model.model.language_model.layers.0.mlp.up_proj.clmoe_A.weight"
    assert example in names


def test_round_trip_agrees_with_peft_bit_for_bit(saved, batch):
    folder, model, base = saved
    expected = model(**batch).logits
    ours = load_adapter(copy.deepcopy(base), folder)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(folder))
    assert torch.equal(ours(**batch).logits, expected)
    assert torch.equal(theirs(**batch).logits, expected)
    for key, tensor in adapter_tensors(ours).items():
        assert torch.equal(tensor, adapter_tensors(theirs)[key])


def test_what_peft_saves_loads_strictly(saved, batch, tmp_path):
    _, model, base = saved
    model.save_pretrained(str(tmp_path / "peft"))
    loaded = load_adapter(base, tmp_path / "peft")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    folder, _, base = saved
    save_adapter(load_adapter(base, folder), tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert len(list((tmp_path / "again").iterdir())) == 2


def test_loading_into_an_attached_adapter_replaces_its_weights(saved, batch, tmp_path):
    folder, model, _ = saved
    expected = model(**batch).logits
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "clmoe_B" in name:
                parameter.zero_()
    assert not torch.equal(model(**batch).logits, expected)
    assert load_adapter(model, folder) is model
    assert torch.equal(model(**batch).logits, expected)


def test_loading_beside_another_adapter(saved, batch):
    folder, model, base = saved
    both = load_adapter(base, folder, adapter_name="first")
    load_adapter(both, folder, adapter_name="second")
    assert torch.equal(both(**batch).logits, model(**batch).logits)
    assert both.active_adapters == ["second"]


@pytest.mark.parametrize("trainable", [True, False])
def test_trainable_or_not(saved, trainable):
    folder, _, base = saved
    loaded = load_adapter(base, folder, trainable=trainable)
    found = {p.requires_grad for n, p in loaded.named_parameters() if "clmoe_" in n}
    assert found == {trainable}
    rest = {n for n, p in loaded.named_parameters() if p.requires_grad and "clmoe_" not in n}
    assert all("modules_to_save" in name for name in rest)
    assert bool(rest) is trainable


def test_half_precision_base_loads_float32_to_the_bit(saved):
    folder, model, base = saved
    loaded = load_adapter(base.to(torch.bfloat16), folder)
    expected = adapter_tensors(model)
    for key, tensor in adapter_tensors(loaded).items():
        assert tensor.dtype is torch.float32, key
        assert torch.equal(tensor, expected[key]), key


def test_info_needs_no_model(saved):
    folder, model, _ = saved
    info = read_adapter_info(folder)
    assert (info.experts, info.rank, info.alpha, info.targets) == (4, 8, 16.0, "ffn")
    assert (info.routers, info.modules_to_save) == ("per-block", ("multi_modal_projector",))
    assert list(info.router_names) == router_names(model)
    assert info.router_of[MLP.format(1, "down_proj")] == MLP.format(1, "gate_proj")
    assert set(read_tensors(folder)) == set(adapter_tensors(model))


def test_natural_order():
    assert natural_order(["a.10.x", "a.9.x", "a.10.b"]) == ["a.9.x", "a.10.b", "a.10.x"]


def test_one_expert_has_no_router_but_its_linears_are_grouped(llava, attach, tmp_path):
    save_adapter(attach(llava, experts=1), tmp_path)
    info = read_adapter_info(tmp_path)
    assert len(info.router_names) == 2
    assert not any("clmoe_router" in name for name in read_tensors(tmp_path))


FIRST = a_key(MLP.format(0, "gate_proj"))
ROUTER = router_key(MLP.format(0, "gate_proj"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FIRST), r"holds 17 tensors, expected 18: 1 are missing, 0 are unknown"),
        (lambda t: t.update({"base_model.model.x.weight": torch.ones(1)}), "1 are unknown"),
        (lambda t: t.update({FIRST: torch.ones(4, 32)}), r"shape \[4, 32\], expected \[8, 'any'\]"),
        (lambda t: t.update({FIRST: torch.ones(8, 16)}), r"shape \[8, 16\], expected \[8, 32\]"),
        (
            lambda t: t.update({ROUTER: torch.ones(2, 32)}),
            r"expected \[4, 'any'\]; likely cause: an",
        ),
        (
            lambda t: t.update({FIRST: torch.ones(8, 0)}),
            "likely cause: a sharded parameter was not",
        ),
        (
            lambda t: t[FIRST].view(-1)[:3].fill_(float("nan")),
            "3 of 256 values of .* are not finite",
        ),
    ],
    ids=["missing", "unknown", "rank", "width", "experts", "empty", "nan"],
)
def test_a_file_that_is_amiss_is_refused_and_changes_nothing(saved, batch, change, message):
    folder, _, base = saved
    before = base(**batch).logits
    edit(folder, change)
    with pytest.raises(ClmoeError, match=message):
        load_adapter(base, folder)
    assert torch.equal(base(**batch).logits, before)
    assert not any("clmoe_" in name for name in base.state_dict())


def test_a_file_that_is_amiss_leaves_the_adapters_already_there(saved, batch):
    folder, model, _ = saved
    before = model(**batch).logits
    edit(folder, lambda t: t.update({FIRST: torch.ones(8, 16)}))
    for name in ("default", "other"):
        with pytest.raises(ClmoeError, match=r"expected \[8, 32\]"):
            load_adapter(model, folder, adapter_name=name)
    assert torch.equal(model(**batch).logits, before)
    assert list(model.peft_config) == ["default"]


def test_a_truncated_file(saved):
    folder, _, base = saved
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ClmoeError, match=r"adapter_model.safetensors is damaged"):
        load_adapter(base, folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file(saved, name):
    folder, _, base = saved
    (folder / name).unlink()
    with pytest.raises(ClmoeError, match=f"{name} is missing"):
        load_adapter(base, folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LORA"}, "an adapter of the method 'LORA', expected 'CLMOE'"),
        ({"router_of": None}, "is not a complete configuration"),
        ({"r": 16}, "expected"),
        ({"experts": 2}, r"has shape \[4, 32\], expected \[2, 'any'\]"),
    ],
)
def test_a_configuration_that_does_not_fit(saved, fields, message):
    folder, _, base = saved
    edit_config(folder, **fields)
    with pytest.raises(ClmoeError, match=message):
        load_adapter(base, folder)


def test_a_configuration_that_is_not_json(saved):
    folder, _, base = saved
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ClmoeError, match="cannot be read"):
        load_adapter(base, folder)


def test_an_adapter_of_another_base(saved, llama):
    folder, _, _ = saved
    with pytest.raises(ClmoeError, match="6 are missing, 6 are not in the adapter"):
        load_adapter(llama, folder)
    assert not any("clmoe_" in name for name in llama.state_dict())


def test_another_size_than_the_attached_adapter(saved, llava, attach, tmp_path):
    _, model, base = saved
    save_adapter(attach(base, r=4, modules_to_save=["multi_modal_projector"]), tmp_path / "small")
    with pytest.raises(ClmoeError, match="has r = 4, the attached adapter has 8"):
        load_adapter(model, tmp_path / "small")


def test_saving_refuses_what_is_not_finite_or_empty(saved, tmp_path):
    _, model, _ = saved
    parameters = dict(model.named_parameters())
    name = f"{FIRST.removesuffix('.weight')}.default.weight"
    kept = parameters[name].data
    parameters[name].data = torch.empty(0)
    with pytest.raises(ClmoeError, match="a sharded parameter was not gathered"):
        save_adapter(model, tmp_path / "bad")
    parameters[name].data = kept.clone().fill_(float("inf"))
    with pytest.raises(ClmoeError, match="256 of 256 values of .* are not finite"):
        save_adapter(model, tmp_path / "bad")
    assert not list((tmp_path / "bad").iterdir())


class Gathered:
    """DeepSpeed's context in which parameters that ZeRO-3 partitioned are whole."""

    open = 0

    def __init__(self, parameters):
        self.parameters = parameters

    def __enter__(self):
        for parameter in self.parameters:
            assert not parameter.numel(), "gathered twice"
            parameter.data = parameter.whole
        Gathered.open += 1

    def __exit__(self, *_):
        for parameter in self.parameters:
            parameter.data = torch.empty(0)


@pytest.mark.parametrize("write", [True, False])
def test_partitioned_parameters_are_saved_whole(saved, tmp_path, monkeypatch, write):
    """A stand-in for ZeRO-3: outside of DeepSpeed's context a parameter is an empty tensor."""
    folder, model, _ = saved
    zero = types.ModuleType("deepspeed.zero")
    monkeypatch.setattr(zero, "GatheredParameters", Gathered, raising=False)
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.zero", zero)
    monkeypatch.setattr(Gathered, "open", 0)
    for place, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.ds_id, parameter.ds_shape = place, parameter.shape
            parameter.whole, parameter.data = parameter.data, torch.empty(0)
    save_adapter(model, tmp_path / "again", write=write)
    opened = Gathered.open
    assert not any(p.numel() for p in model.parameters() if p.requires_grad)
    assert (tmp_path / "again").exists() is write
    if write:
        for path in folder.iterdir():
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    save_adapter(model, tmp_path / "more", write=not write)
    assert Gathered.open == 2 * opened  # every process opens it as often: it is collective
