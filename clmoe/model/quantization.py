"""4-bit bases: the decoder's linears in NF4 (Dettmers et al. 2023), everything else as it was.

NF4 keeps a weight in four bits, with one scale for 64 of them, itself kept in eight bits (double
quantisation). Products are computed in the base's dtype. Vision tower, projector, embeddings and
output layer stay unquantised, and so do the experts, which are float32 on any base.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from clmoe.errors import ClmoeError
from clmoe.model.targets import decoder_blocks

if TYPE_CHECKING:
    from clmoe.recipe.schema import Base

BLOCK = 64
"""Weights that share a scale."""


def loading_options(
    config: Base, *, model_config: Any, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Return what `from_pretrained` needs to load a base as `base.quantization` says.

    transformers then quantises each weight as it reads it, so the unquantised base is never whole
    in memory. A quantised base is put on its device by `device_map`, not by `.to`.

    Args:
        config: The recipe's `base` section.
        model_config: The base model's own configuration.
        device: Where the base is to be.
        dtype: What products are computed in, and what the unquantised parameters are stored in.

    Raises:
        ClmoeError: bitsandbytes is not installed or does not run on the device, the base is
            quantised already, or a linear is not a multiple of 64 wide.
    """
    if config.quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ClmoeError(
            "base.quantization is nf4, but the package bitsandbytes is not installed",
            hint="pip install 'clmoe[quant]', or base.quantization=none",
        )
    if device.type not in ("cpu", "cuda"):
        raise ClmoeError(
            f"base.quantization is nf4, which does not run on {device.type}",
            hint="use runtime.device=cuda or cpu, or base.quantization=none",
        )
    if getattr(model_config, "quantization_config", None) is not None:
        raise ClmoeError(
            f"{config.model} is stored quantised already", hint="use base.quantization=none"
        )
    inside, outside = split_linears(model_config)
    for path, linear in inside.items():
        if linear.in_features % BLOCK:
            raise ClmoeError(
                f"{path} of {config.model} is {linear.in_features} wide; nf4 needs a multiple of "
                f"{BLOCK}",
                hint="use base.quantization=none",
            )
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(outside),  # its name is older than 4 bits; it holds for both
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def settle(model: Any, *, device: torch.device) -> Any:
    """Return a loaded model on its device, ready for training and evaluation.

    A quantised model is there already. On CPUs with AVX-512 bitsandbytes would repack a weight at
    the first evaluation and compute in bfloat16 from then on, without gradients; that is turned
    off, so that the model computes the same before and after an evaluation.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        return model.to(device)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def split_linears(model_config: Any) -> tuple[dict[str, nn.Linear], dict[str, nn.Linear]]:
    """Return a base's linears by path: those in its decoder's blocks, and all others.

    The model is made on the meta device: it has shapes and no weights.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(model_config)
    blocks = tuple(f"{path}." for path in decoder_blocks(model))
    linears = {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear)}
    inside = {path: linear for path, linear in linears.items() if path.startswith(blocks)}
    return inside, {path: m for path, m in linears.items() if path not in inside}
