"""Vision-language models to measure: the built-in base, and sizes built at random.

A random model is made where it will run and in its final dtype, so that one of 7B parameters never
exists in float32, nor in the memory of the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from clmoe.errors import UsageError, did_you_mean
from clmoe.model.tiny import tiny_folder

MODELS = ("tiny", "llava-small", "llava-7b")
PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Model:
    """A frozen vision-language model and the sizes of its inputs.

    Attributes:
        name: What it was asked for by.
        model: A `LlavaForConditionalGeneration`, on its device.
        image_tokens: Image tokens of a picture.
        side: Pixels of a picture's side.
    """

    name: str
    model: Any
    image_tokens: int
    side: int

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def image_token(self) -> int:
        """Id of the image token."""
        return int(self.model.config.image_token_id)

    def pictures(self, count: int) -> Tensor:
        """Random pictures, [count, 3, side, side]."""
        pixels = torch.randn(count, 3, self.side, self.side, generator=seeded(2))
        return pixels.to(self.model.device, self.model.dtype)


def build(name: str, *, layers: int | None, device: torch.device, dtype: torch.dtype) -> Model:
    """The built-in base with its trained weights, or a model at random from its configuration.

    Args:
        name: One of `MODELS`.
        layers: Decoder blocks; None: as many as the model has. Fewer than the built-in base has
            are its first ones.
        device: Where to.
        dtype: Of every parameter.

    Raises:
        UsageError: The name is unknown, or there are not so many layers.
    """
    if name not in MODELS:
        raise UsageError(
            f"{name!r} is no model to measure{did_you_mean(name, MODELS)}",
            hint=f"--model is one of {', '.join(MODELS)}",
        )
    if layers is not None and layers < 1:
        raise UsageError(f"--layers {layers} is not possible", hint="at least 1")
    if name == "tiny":
        model = _tiny(layers, device=device, dtype=dtype)
    else:
        model = _random(llava_config(name, layers=layers), device=device, dtype=dtype)
    vision = model.config.vision_config
    return Model(
        name=name,
        model=model.eval().requires_grad_(False),
        image_tokens=(vision.image_size // vision.patch_size) ** 2,
        side=int(vision.image_size),
    )


def llava_config(name: str, *, layers: int | None) -> LlavaConfig:
    """The configuration of LLaVA-1.5-7B (Liu et al. 2023), or of a small model of its shape."""
    large = name == "llava-7b"
    text = LlamaConfig(
        vocab_size=32064 if large else 16000,
        hidden_size=4096 if large else 640,
        intermediate_size=11008 if large else 1720,
        num_hidden_layers=layers or (32 if large else 8),
        num_attention_heads=32 if large else 10,
        num_key_value_heads=32 if large else 10,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024 if large else 320,
        intermediate_size=4096 if large else 1280,
        num_hidden_layers=24 if large else 6,
        num_attention_heads=16 if large else 5,
        image_size=336 if large else 112,
        patch_size=14,
        projection_dim=768 if large else 320,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=32000 if large else 3,
        image_seq_length=576 if large else 64,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _random(config: LlavaConfig, *, device: torch.device, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(usual)


def _tiny(layers: int | None, *, device: torch.device, dtype: torch.dtype) -> Any:
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = LlavaForConditionalGeneration.from_pretrained(str(tiny_folder()), dtype=dtype)
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    decoder = model.get_decoder()
    if layers is not None:
        if layers > len(decoder.layers):
            raise UsageError(
                f"--layers {layers}: the built-in base has {len(decoder.layers)} decoder blocks",
                hint="use --model llava-small",
            )
        decoder.layers = decoder.layers[:layers]
        decoder.config.num_hidden_layers = layers
    return model.to(device)


class Ids:
    """Stands for the tokenizer of a random model: its text is the ids themselves."""

    pad_token_id = PAD
    eos_token_id = EOS

    def batch_decode(self, rows: Iterable[Iterable[Any]], **_: object) -> list[str]:
        """The ids of every row, padding and end left out."""
        ids = [[int(i) for i in row] for row in rows]
        return [" ".join(str(i) for i in row if i not in (PAD, EOS)) for row in ids]


def tokenizer_of(model: Model) -> Any:
    """The tokenizer of the built-in base, or what stands for one."""
    return AutoTokenizer.from_pretrained(str(tiny_folder())) if model.name == "tiny" else Ids()


def seeded(number: int) -> torch.Generator:
    """A generator on the CPU, so that inputs are the same on every device."""
    return torch.Generator().manual_seed(number)
