"""Dtype, attention kernel and prompt where the recipe says auto, and choices that cannot be."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from clmoe.errors import ClmoeError
from clmoe.model.backbone import check_base, choose_kernels, load_backbone
from clmoe.model.choices import choose_attention, choose_dtype
from clmoe.model.pictures import make_prompter
from clmoe.recipe.schema import Base

from .families import byte_level, llama_text, vision

CUDA = torch.device("cuda")
BOTH_WAYS = "lets tokens of a picture see those after them, which flash-attn would mask"
LLAMA_3_TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% for p in m.content %}{{ '<image>\n' if p.type == 'image' else p.text }}{% endfor %}"
    "<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if flash-attn were installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.fixture
def copy(folders: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folders(name), tmp_path / name))


def on_a_gpu(config: Any, wanted: str = "auto") -> tuple[str, str]:
    return choose_attention(wanted, device=CUDA, dtype=torch.bfloat16, model_config=config)


def type_of(config: Any) -> str:
    return type(config).__name__.replace("Config", "ForConditionalGeneration")


def test_dtype_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_dtype("auto", device=CUDA)[0] is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert choose_dtype("auto", device=CUDA)[0] is torch.float32


@pytest.mark.usefixtures("flash")
def test_flash_where_it_runs() -> None:
    assert on_a_gpu(None)[0] == "flash_attention_2"
    for kind in (hf.LlavaConfig, hf.LlavaNextConfig, hf.Qwen2_5_VLConfig, hf.Qwen3VLConfig):
        assert on_a_gpu(kind())[0] == "flash_attention_2", kind
        assert on_a_gpu(kind(), "flash_attention_2")[0] == "flash_attention_2"
    single = choose_attention("auto", device=CUDA, dtype=torch.float32)
    assert single == ("sdpa", "sdpa: flash-attn does not run float32 on cuda")
    on_cpu = choose_attention("auto", device=torch.device("cpu"), dtype=torch.bfloat16)
    assert on_cpu == ("sdpa", "sdpa: flash-attn does not run bfloat16 on cpu")


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize(
    "config",
    [
        hf.Gemma3Config(),
        hf.PaliGemmaConfig(),
        hf.LlavaConfig(text_config={"model_type": "gemma", "use_bidirectional_attention": True}),
    ],
    ids=["gemma3", "paligemma", "llava"],
)
def test_no_flash_where_picture_tokens_see_both_ways(config: Any) -> None:
    kernel, why = on_a_gpu(config)
    assert kernel == "sdpa"
    assert why.startswith("sdpa: ")
    assert why.endswith(BOTH_WAYS)
    with pytest.raises(ClmoeError, match=r"base.attention is flash_attention_2, but") as caught:
        on_a_gpu(config, "flash_attention_2")
    assert caught.value.message.endswith(BOTH_WAYS)
    assert caught.value.hint == "use base.attention=sdpa, or base.attention=auto"
    assert on_a_gpu(config, "eager") == ("eager", "eager: base.attention")


@pytest.mark.usefixtures("flash")
def test_kernels_that_a_class_does_not_support() -> None:
    got, llama_4 = hf.GotOcr2Config(), hf.Llama4Config()
    assert on_a_gpu(llama_4) == (
        "sdpa",
        f"sdpa: {type_of(llama_4)} does not support flash_attention_2",
    )
    assert on_a_gpu(got) == (
        "eager",
        "eager: GotOcr2ForConditionalGeneration does not support sdpa",
    )
    with pytest.raises(ClmoeError, match="does not support flash_attention_2") as caught:
        on_a_gpu(got, "flash_attention_2")
    assert caught.value.hint == "use base.attention=eager, or base.attention=auto"
    with pytest.raises(ClmoeError, match="base.attention is sdpa, but GotOcr2.* does not support"):
        on_a_gpu(got, "sdpa")


@pytest.mark.usefixtures("flash")
def test_kernels_that_a_part_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    """A composite model hands its kernel to its parts, each of which has to support it."""
    monkeypatch.setattr(hf.CLIPVisionModel, "_supports_flash_attn", False)
    config = hf.LlavaConfig(vision_config={"model_type": "clip_vision_model"})
    assert on_a_gpu(config) == (
        "sdpa",
        "sdpa: CLIPVisionModel does not support flash_attention_2",
    )


@pytest.mark.usefixtures("flash")
def test_paligemma_2_runs_with_eager_attention_alone() -> None:
    """Flash would mask its prompts, and its decoder, Gemma 2, has no sdpa."""
    config = hf.PaliGemmaConfig(text_config={"model_type": "gemma2"})
    assert on_a_gpu(config) == ("eager", "eager: Gemma2Model does not support sdpa")
    with pytest.raises(ClmoeError, match=BOTH_WAYS) as caught:
        on_a_gpu(config, "flash_attention_2")
    assert caught.value.hint == "use base.attention=eager, or base.attention=auto"


def test_kernels_of_a_recipe_with_and_without_the_models_configuration() -> None:
    kernels = choose_kernels(Base(), device=torch.device("cpu"))
    assert kernels == (
        torch.float32,
        "sdpa",
        "float32: the device is cpu",
        "sdpa: flash-attn is not installed",
    )
    with_config = choose_kernels(
        Base(), device=torch.device("cpu"), model_config=hf.GotOcr2Config()
    )
    assert with_config[1] == "eager"


def test_flash_attention_that_is_not_installed(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    base = Base(model=str(folders("llava")), attention="flash_attention_2")
    for use in (load_backbone, check_base):
        with pytest.raises(ClmoeError, match="flash-attn is not installed") as caught:
            use(base)
        assert caught.value.hint is not None
        assert caught.value.hint.startswith("pip install flash-attn --no-build-isolation")


def test_a_class_without_sdpa_is_loaded_and_an_explicit_choice_refused(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.LlavaForConditionalGeneration, "_supports_sdpa", False)
    folder = str(folders("llava"))
    loaded = load_backbone(Base(model=folder))
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.choices[1] == "eager: LlavaForConditionalGeneration does not support sdpa"
    for use in (load_backbone, check_base):
        with pytest.raises(ClmoeError, match="base.attention is sdpa, but LlavaFor.* not support"):
            use(Base(model=folder, attention="sdpa"))


def llava_on_llama_3(folder: Path) -> None:
    """A LLaVA whose decoder is a Llama with Llama 3's tokenizer and chat template."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>"]
    tokenizer = byte_level(
        [*specials, "<|end_header_id|>", "<image>", "<pad>"],
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    config = hf.LlavaConfig(
        vision_config=vision(hf.CLIPVisionConfig, patch=8),
        text_config=llama_text(tokenizer),
        image_token_id=tokenizer.image_token_id,
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = hf.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=LLAMA_3_TEMPLATE,
    ).save_pretrained(folder)


def test_a_llava_on_llama_3_gets_its_own_chat_template(tmp_path: Path) -> None:
    llava_on_llama_3(tmp_path)
    loaded = load_backbone(Base(model=str(tmp_path)))
    assert loaded.prompt == "chat"
    assert loaded.choices[2] == "prompt chat: the tokenizer ends texts with <|eot_id|>"
    prompt = make_prompter(loaded, suffix="").prompt("Is it red?")
    assert loaded.tokenizer.decode(prompt.input_ids).endswith(
        f"<|start_header_id|>user<|end_header_id|>\n\n{'<image>' * 4}\nIs it red?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


LLAVA_1_5_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% for content in message['content'] "
    "| selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
def test_llava_1_5_keeps_its_prompt(copy: Callable[[str], Path], file: str) -> None:
    """Its repository ships a USER/ASSISTANT template, in the older of the two files."""
    folder = copy("llava")
    text = LLAVA_1_5_TEMPLATE
    if file.endswith("json"):
        text = json.dumps({"chat_template": text})
    (folder / file).write_text(text)
    loaded = load_backbone(Base(model=str(folder)))
    assert loaded.chat_template == LLAVA_1_5_TEMPLATE
    assert loaded.prompt == "vicuna_v1"
    assert loaded.choices[2] == "prompt vicuna_v1: a LLaVA with the tokenizer of Llama 2"


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
def test_another_chat_template_on_a_llama_2_tokenizer(
    copy: Callable[[str], Path], file: str
) -> None:
    folder = copy("llava")
    text = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    (folder / file).write_text(json.dumps({"chat_template": text}) if "json" in file else text)
    loaded = load_backbone(Base(model=str(folder)))
    assert loaded.prompt == "chat"
    assert loaded.choices[2] == "prompt chat: the base's own template is not USER/ASSISTANT"


def test_prompts_of_other_bases(folders: Callable[[str], Path]) -> None:
    assert load_backbone(Base()).choices[2] == "prompt short: the built-in base was trained with it"
    for name, prompt in (("llava_next", "chat"), ("paligemma", "paligemma")):
        loaded = load_backbone(Base(model=str(folders(name))))
        assert loaded.prompt == prompt
        assert loaded.choices[2].startswith(f"prompt {prompt}: ")
