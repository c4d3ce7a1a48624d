"""The mixture as a PEFT method: what users of PEFT expect of any method, and where experts go."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, mapping
from torch import nn
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from clmoe.errors import ClmoeError
from clmoe.model.config import ClmoeConfig, MethodType
from clmoe.model.control import router_names
from clmoe.model.injection import ClmoeModel
from clmoe.model.layer import MixtureLinear
from clmoe.model.targets import resolve_targets
from clmoe.model.tuner import attach, register

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
FFN = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture(params=["llama", "llava"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def inputs(base, text_batch, batch):
    return batch if isinstance(base, LlavaForConditionalGeneration) else text_batch


def adapted(model):
    return [path for path, module in model.named_modules() if isinstance(module, MixtureLinear)]


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_registered_in_the_dictionaries_that_peft_reads():
    register()
    register()
    assert isinstance(mapping.PEFT_TYPE_TO_CONFIG_MAPPING["CLMOE"](r=16), ClmoeConfig)
    assert mapping.PEFT_TYPE_TO_TUNER_MAPPING["CLMOE"].tuner_layer_cls is MixtureLinear
    assert mapping.PEFT_TYPE_TO_PREFIX_MAPPING["CLMOE"] == ClmoeModel.prefix
    assert MethodType.CLMOE in mapping.PEFT_TYPE_TO_TUNER_MAPPING


@pytest.mark.slow
@pytest.mark.parametrize("first", ["control", "tuner"])
def test_whichever_module_imports_peft_first_the_method_is_known(first):
    """`import clmoe` registers when PEFT is imported, which may be inside any of these."""
    code = (
        f"import clmoe.model.{first}, peft; from clmoe.model.config import ClmoeConfig;"
        "assert type(peft.get_peft_config({'peft_type': 'CLMOE', 'r': 8})) is ClmoeConfig"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_get_peft_model_starts_as_the_base_and_trains_only_experts(base, inputs):
    expected = base(**inputs).logits
    model = get_peft_model(base, ClmoeConfig(experts=4, r=8))
    assert isinstance(model, PeftModel)
    assert torch.equal(model.eval()(**inputs).logits, expected)
    assert all("clmoe_" in name for name in trainable(model))
    blocks = 2
    assert len(trainable(model)) == blocks * (3 * 2 + 1)


def test_save_pretrained_and_from_pretrained(base, inputs, attach, tmp_path):
    untouched = copy.deepcopy(base)
    model = attach(base)
    model.save_pretrained(str(tmp_path))
    assert type(PeftConfig.from_pretrained(str(tmp_path))) is ClmoeConfig
    loaded = PeftModel.from_pretrained(untouched, str(tmp_path))
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_from_pretrained_without_allocating_twice(base, inputs, attach, tmp_path):
    untouched = copy.deepcopy(base)
    model = attach(base)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(untouched, str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_disable_adapter_gives_the_base_model(base, inputs, attach):
    expected = base(**inputs).logits
    model = attach(base)
    changed = model(**inputs).logits
    with model.disable_adapter():
        assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(model(**inputs).logits, changed)
    assert not torch.equal(changed, expected)


def test_set_adapter_switches_between_two_of_different_size(base, inputs, attach, randomize):
    model = attach(base)
    first = model(**inputs).logits
    other = ClmoeConfig(experts=2, r=4, targets="all-linear", routers="per-linear")
    model.add_adapter("other", other)
    assert torch.equal(model(**inputs).logits, first)
    randomize(model, seed=9, adapter="other")
    model.set_adapter("other")
    second = model(**inputs).logits
    assert not torch.equal(second, first)
    assert len(router_names(model)) == 2 * 7
    assert all(".other." in name for name in trainable(model))
    model.set_adapter("default")
    assert torch.equal(model(**inputs).logits, first)
    assert len(router_names(model)) == 2


def test_two_active_adapters_add_up_but_have_no_one_set_of_routers(llama, text_batch, attach):
    model = attach(llama)
    model.add_adapter("other", ClmoeConfig(experts=2, r=4))
    model.base_model.set_adapter(["default", "other"])
    model(**text_batch)
    with pytest.raises(ClmoeError, match="2 adapters are active at once: default, other"):
        router_names(model)


@pytest.mark.filterwarnings("ignore:Adapter default was active")
def test_delete_adapter(llama, text_batch, attach, randomize):
    model = attach(llama)
    model.add_adapter("other", ClmoeConfig(experts=2, r=4))
    randomize(model, seed=9, adapter="other")
    model.set_adapter("other")
    expected = model(**text_batch).logits
    model.delete_adapter("default")
    assert torch.equal(model(**text_batch).logits, expected)
    assert not any(".default." in name for name in model.state_dict())


def test_modules_to_save_trains_and_keeps_the_projector(llava, batch, attach, tmp_path):
    untouched = copy.deepcopy(llava)
    model = attach(llava, modules_to_save=["multi_modal_projector"])
    projector = [name for name in trainable(model) if "multi_modal_projector" in name]
    assert len(projector) == 4
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in projector:
                parameter.add_(0.5)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(untouched, str(tmp_path))
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    with model.disable_adapter():
        off = model(**batch).logits
    assert not torch.equal(off, model(**batch).logits)


def test_unload_gives_the_base_back_without_hooks(base, inputs, attach):
    expected = base(**inputs).logits
    unloaded = attach(base).unload()
    assert torch.equal(unloaded(**inputs).logits, expected)
    assert adapted(unloaded) == []
    assert not any(module._forward_pre_hooks for module in unloaded.modules())


def test_unload_gives_the_projector_back(llava, batch, attach):
    expected = llava(**batch).logits
    unloaded = attach(llava, modules_to_save=["multi_modal_projector"]).unload()
    assert torch.equal(unloaded(**batch).logits, expected)
    assert "modules_to_save" not in str(unloaded)


def test_folding_a_mixture_is_refused(llama, attach):
    model = attach(llama)
    with pytest.raises(ClmoeError, match="its gate depends on each input"):
        model.merge_and_unload()
    with pytest.raises(ClmoeError, match="its gate depends on each input"):
        model.merge_adapter()


def test_deepcopy_and_torch_save_are_independent_copies(base, inputs, attach):
    model = attach(base)
    buffer = io.BytesIO()
    torch.save(model, buffer)  # after a forward, hooks of transformers itself cannot be pickled
    buffer.seek(0)
    expected = model(**inputs).logits
    for copied in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(copied(**inputs).logits, expected)
        for name, parameter in copied.named_parameters():
            if "clmoe_router" in name:
                nn.init.constant_(parameter, 1.0)
        assert not torch.equal(copied(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)


def test_batch_size_may_change_from_call_to_call(llama, text_batch, attach):
    model = attach(llama)
    whole = model(**text_batch).logits
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in text_batch.items()}
        torch.testing.assert_close(model(**one).logits[0], whole[row], atol=1e-5, rtol=1e-5)


def test_generate_gives_the_same_with_and_without_cache(base, inputs, attach):
    model = attach(base)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(**inputs, use_cache=True, **options),
        model.generate(**inputs, use_cache=False, **options),
    )


def test_initial_weights_are_decided_by_the_seed_and_the_path(llama):
    def weights(**fields):
        torch.rand(3)  # the global generator must not matter
        model = attach(copy.deepcopy(llama), ClmoeConfig(**{"experts": 4, "r": 8} | fields))
        return {n: p.detach() for n, p in model.named_parameters() if "clmoe_" in n}

    first, again, other = weights(), weights(), weights(init_seed=1)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        if "clmoe_B" in name:
            assert not value.any()
        else:
            assert not torch.equal(value, other[name])
        if "clmoe_A" in name:
            bound = value.shape[1] ** -0.5
            assert 0.9 * bound < float(value.abs().max()) <= bound
    wider = weights(targets="all-linear")
    assert all(torch.equal(wider[name], value) for name, value in first.items() if "_A" in name)


def test_weights_stay_float32_on_a_half_precision_base(llama, text_batch, attach, tmp_path):
    model = attach(llama.to(torch.bfloat16))
    ours = {n: p for n, p in model.named_parameters() if "clmoe_" in n}
    assert {p.dtype for p in ours.values()} == {torch.float32}
    assert model(**text_batch).logits.dtype is torch.bfloat16
    model(**text_batch).logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in ours.values())


def test_dropout_acts_in_training_only(llama, text_batch, attach):
    model = attach(llama, dropout=0.5)
    assert torch.equal(model(**text_batch).logits, model(**text_batch).logits)
    model.train()
    assert not torch.equal(model(**text_batch).logits, model(**text_batch).logits)


def test_ffn_is_every_decoder_mlp_and_nothing_of_the_vision_tower(llava, attach):
    paths = adapted(attach(llava).get_base_model())
    assert paths == [
        f"model.language_model.layers.{layer}.mlp.{name}" for layer in range(2) for name in FFN
    ]


def test_all_linear_is_every_linear_of_the_decoder_blocks(llava, attach):
    paths = adapted(attach(llava, targets="all-linear").get_base_model())
    assert len(paths) == 2 * 7
    assert all(".language_model.layers." in path for path in paths)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["q_proj"], ["self_attn.q_proj"]),
        (["mlp.*"], [f"mlp.{name}" for name in FFN]),
        (["?_proj"], [f"self_attn.{name}_proj" for name in "qkvo"]),
        (["v_proj", "down_proj"], ["self_attn.v_proj", "mlp.down_proj"]),
    ],
)
def test_patterns(llama, text_batch, attach, patterns, expected):
    model = attach(llama, targets=patterns)
    paths = adapted(model.get_base_model())
    assert paths == [f"model.layers.{layer}.{path}" for layer in range(2) for path in expected]
    model(**text_batch)


def test_a_pattern_that_matches_nothing_lists_the_linears(llama):
    with pytest.raises(ClmoeError) as caught:
        attach(llama, ClmoeConfig(targets=["q_proj", "query"]))
    assert str(caught.value) == (
        "adapter targets ['query'] match no linear of 2 decoder blocks; the linears of a block are "
        "mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, "
        "self_attn.q_proj, self_attn.v_proj"
    )


def test_unknown_word_for_targets(llama):
    with pytest.raises(ClmoeError, match="adapter targets 'mlps' are not known"):
        resolve_targets(llama, targets="mlps", routers="per-block")


def test_a_model_without_decoder_is_refused():
    with pytest.raises(ClmoeError, match="Linear has no decoder to attach experts to"):
        attach(nn.Linear(2, 2), ClmoeConfig())


def test_blocks_without_linear_mlp_are_refused_with_what_they_hold(llama):
    for block in llama.model.layers:
        block.mlp = nn.Sequential(nn.Linear(32, 48), nn.Sequential(nn.Linear(48, 32)))
    with pytest.raises(
        ClmoeError, match=r"model.layers.0 has no MLP made of plain linears; .*mlp \(Seq"
    ):
        resolve_targets(llama, targets="ffn", routers="per-block")


def test_linears_directly_in_a_block_cannot_share_a_router(llama):
    for block in llama.model.layers:
        block.fc1 = nn.Linear(32, 48)
    with pytest.raises(ClmoeError, match="stands directly in its decoder block"):
        resolve_targets(llama, targets=["fc1"], routers="per-block")
    plan = resolve_targets(llama, targets=["fc1"], routers="per-linear")
    assert plan.router_width == {"model.layers.0.fc1": 32, "model.layers.1.fc1": 32}


def test_a_router_shared_by_a_lone_down_proj_still_reads_the_mlps_input(llama, text_batch, attach):
    model = attach(llama, targets=["down_proj"])
    assert router_names(model) == [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    model(**text_batch)


def test_a_linear_called_without_its_block_is_an_error(llama, attach):
    model = attach(llama)
    layer = model.get_base_model().get_submodule("model.layers.0.mlp.up_proj")
    with pytest.raises(ClmoeError, match="called without the block"):
        layer(torch.zeros(1, 1, 32))


def test_an_adapter_of_another_base_is_refused_by_peft_too(attach, llama, llava, tmp_path):
    attach(llava).save_pretrained(str(tmp_path))
    with pytest.raises(ClmoeError, match="the adapter adapts 6 linears, this base model has 6"):
        PeftModel.from_pretrained(llama, str(tmp_path))
    assert isinstance(llama, LlamaForCausalLM)
    assert adapted(llama) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 3, "r": 8}, "rank 8 cannot be shared by 3 experts"),
        ({"experts": 0}, "rank 64 cannot be shared by 0 experts"),
        ({"routers": "per-layer"}, "routers is 'per-layer'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"target_modules": ["q_proj"]}, "target_modules is not used"),
    ],
)
def test_configuration_is_checked(fields, message):
    with pytest.raises(ClmoeError, match=message):
        ClmoeConfig(**fields)


def test_configuration_from_a_recipe():
    from clmoe.recipe.schema import Adapter

    section = Adapter(experts=2, rank=4, alpha=8.0, targets=["q_proj"], routers="per-linear")
    config = ClmoeConfig.from_recipe(section, base="tiny", seed=5, modules_to_save=["x"])
    assert (config.experts, config.r, config.scaling) == (2, 4, 2.0)
    assert (config.targets, config.routers) == (["q_proj"], "per-linear")
    assert (config.base_model_name_or_path, config.init_seed) == ("tiny", 5)
    assert config.modules_to_save == ["x"]
