"""Small random models, built from the same configuration classes as the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin

from clmoe.model.config import ClmoeConfig
from clmoe.model.tuner import attach as attach_adapter

from . import families

IMAGE_TOKEN = 63


def llama_config(layers: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def llava_config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=llama_config(),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
        vision_feature_layer=-1,
    )


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config()).eval()


@pytest.fixture
def llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(llava_config()).eval()


@pytest.fixture
def text_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (3, 7), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two prompts of four image tokens and some text, the second padded on the left."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 60, (2, 6), generator=generator)
    ids = torch.cat([torch.full((2, 4), IMAGE_TOKEN), text], dim=1)
    mask = torch.ones_like(ids)
    ids = torch.cat([torch.tensor([[5, 6], [0, 0]]), ids], dim=1)
    mask = torch.cat([torch.tensor([[1, 1], [0, 0]]), mask], dim=1)
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


@pytest.fixture
def randomize() -> Callable[..., None]:
    """Give an adapter weights that do something: B starts at zero, the gates nearly uniform."""

    def fill(model: nn.Module, *, seed: int = 3, adapter: str = "default") -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if f"clmoe_B.{adapter}" in name or f"clmoe_router.{adapter}" in name:
                with torch.no_grad():
                    parameter.normal_(0.0, 0.2, generator=generator)

    return fill


@pytest.fixture
def attach(randomize: Callable[..., None]) -> Callable[..., PeftModel]:
    """Attach an adapter of four experts with random weights."""

    def make(model: nn.Module, *, seed: int = 3, **fields: object) -> PeftModel:
        settings: dict[str, object] = {"experts": 4, "r": 8, "alpha": 16.0} | fields
        peft_model = attach_adapter(model, ClmoeConfig(**settings))
        randomize(peft_model, seed=seed)
        return peft_model.eval()

    return make


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's model, made once."""
    root = tmp_path_factory.mktemp("families")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = families.make(name, root / name)
        return made[name]

    return folder


@pytest.fixture
def without_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads a Qwen or SmolVLM processor without its video half, everything else as ever."""
    load = transformers.AutoProcessor.from_pretrained
    check = ProcessorMixin.check_argument_for_proper_class
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "qwen2_5_vl": (transformers.Qwen2_5_VLProcessor, {}),
        "qwen3_vl": (transformers.Qwen3VLProcessor, {}),
        "smolvlm": (transformers.SmolVLMProcessor, {"video_processor": None, "image_seq_len": 4}),
    }

    def processor(place: str, **options: Any) -> Any:
        if Path(place).name not in kinds:
            return load(place, **options)
        kind, fields = kinds[Path(place).name]
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        images = transformers.AutoImageProcessor.from_pretrained(place)
        return kind(images, tokenizer, chat_template=tokenizer.chat_template, **fields)

    def lenient(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None else check(self, name, argument)

    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # spells the frames of a video
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", processor)
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lenient)
