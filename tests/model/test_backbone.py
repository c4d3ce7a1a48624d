"""Loading base models, and running them on features of pictures that were projected before."""

from __future__ import annotations

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clmoe.errors import ClmoeError
from clmoe.model.backbone import embed, load_backbone, project_images
from clmoe.recipe.schema import Base


@pytest.fixture
def folder(llava, tmp_path):
    """A small random LLaVA saved as real ones are."""
    words = ["<pad>", "<s>", "</s>", *(f"w{index}" for index in range(3, 63)), "<image>"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
    )
    place = tmp_path / "llava"
    llava.save_pretrained(place)
    tokenizer.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16},'
        ' "crop_size": {"height": 16, "width": 16}}'
    )
    return place


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_load_a_folder(folder, llava, batch):
    loaded = load_backbone(Base(model=str(folder)))
    assert torch.equal(loaded.model(**batch).logits, llava(**batch).logits)
    assert (loaded.image_token, loaded.image_token_id, loaded.image_tokens) == ("<image>", 63, 4)
    assert (loaded.name, loaded.prompt) == (str(folder), "vicuna_v1")
    assert loaded.projector == "model.multi_modal_projector"
    assert loaded.tokenizer("w5 <image>")["input_ids"] == [5, 63]
    assert loaded.image_processor.crop_size["height"] == 16
    assert type(loaded.image_processor).__name__ == "CLIPImageProcessorPil"  # not torchvision's
    assert (loaded.dtype, loaded.device.type) == (torch.float32, "cpu")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_load_the_built_in_base():
    loaded = load_backbone(Base())
    assert (loaded.name, loaded.prompt, loaded.image_token) == ("tiny", "short", "<image>")
    assert loaded.image_tokens == 9
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) <= 2_000_000


def test_choices_and_their_reasons(folder):
    loaded = load_backbone(Base(model=str(folder), prompt="chat", attention="eager"))
    assert loaded.choices == (
        "float32: the device is cpu",
        "eager: base.attention",
        "prompt chat: base.prompt",
    )
    assert loaded.prompt == "chat"
    assert loaded.model.config._attn_implementation == "eager"
    half = load_backbone(Base(model=str(folder), dtype="bfloat16"))
    assert half.dtype is torch.bfloat16
    assert half.choices[0] == "bfloat16: base.dtype"
    given = load_backbone(Base(model=str(folder)), dtype=torch.bfloat16)
    assert given.model.lm_head.weight.dtype is torch.bfloat16


def test_missing_weights_while_offline(offline):
    with pytest.raises(ClmoeError, match="nobody/nothing is not on this machine") as caught:
        load_backbone(Base(model="nobody/nothing", revision="abc"))
    assert caught.value.hint == "hf download nobody/nothing --revision abc"


def test_a_folder_that_is_not_there(offline):
    with pytest.raises(ClmoeError, match="the folder ./no/such/base, which does not exist"):
        load_backbone(Base(model="./no/such/base"))


def test_a_language_model_is_refused(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    with pytest.raises(ClmoeError, match="is a Llama model, not a vision-language model"):
        load_backbone(Base(model=str(tmp_path)))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder(folder, file):
    (folder / file).unlink()
    with pytest.raises(ClmoeError, match="is not a complete vision-language model"):
        load_backbone(Base(model=str(folder)))


def test_projected_features_give_the_logits_of_the_pictures(folder, batch, attach):
    loaded = load_backbone(Base(model=str(folder)))
    attach(loaded.model)
    features = project_images(loaded, batch["pixel_values"])
    assert features.shape == (2, 4, 32)
    assert not features.requires_grad
    embeds = embed(loaded, batch["input_ids"], features)
    mask = batch["attention_mask"]
    got = loaded.model(inputs_embeds=embeds, attention_mask=mask).logits
    assert torch.equal(got, loaded.model(**batch).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    whole = loaded.model.generate(**batch, **options)
    fast = loaded.model.generate(inputs_embeds=embeds, attention_mask=mask, **options)
    assert torch.equal(fast, whole[:, batch["input_ids"].shape[1] :])


def test_projected_features_of_the_built_in_base():
    loaded = load_backbone(Base())
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 48, 48, generator=generator)
    ids = torch.tensor([[3] * 9 + [40, 50], [3] * 9 + [60, 70]])
    embeds = embed(loaded, ids, project_images(loaded, pixels))
    got = loaded.model(inputs_embeds=embeds).logits
    assert torch.equal(got, loaded.model(input_ids=ids, pixel_values=pixels).logits)


def test_features_must_fit_the_prompts(folder, batch):
    loaded = load_backbone(Base(model=str(folder)))
    features = project_images(loaded, batch["pixel_values"])
    with pytest.raises(
        ClmoeError, match="the prompts hold 8 image tokens, the pictures 4 features"
    ):
        embed(loaded, batch["input_ids"], features[:1])
