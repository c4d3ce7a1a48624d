"""What a base gets where a recipe says `auto`: dtype, attention kernel and prompt, and why each."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModel, AutoModelForImageTextToText

from clmoe.errors import ClmoeError

if TYPE_CHECKING:
    from clmoe.model.vision import PictureProcessor
    from clmoe.recipe.schema import Base

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SUPPORT = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
_TYPES = ("token_type_ids", "mm_token_type_ids")


def choose_dtype(
    wanted: str, *, device: torch.device, override: torch.dtype | None = None
) -> tuple[torch.dtype, str]:
    """Return what a base's parameters are stored in, and why.

    Args:
        wanted: The recipe's `base.dtype`.
        device: Where the base will be.
        override: What the caller asks for instead.
    """
    if override is not None:
        return override, f"{_short(override)}: given by the caller"
    if wanted != "auto":
        return _DTYPES[wanted], f"{wanted}: base.dtype"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "bfloat16: the GPU supports it"
    if device.type == "cuda":
        return torch.float32, "float32: this GPU has no bfloat16"
    return torch.float32, f"float32: the device is {device.type}"


def choose_attention(
    wanted: str, *, device: torch.device, dtype: torch.dtype, model_config: Any = None
) -> tuple[str, str]:
    """Return the attention kernel of a base, and why.

    Args:
        wanted: The recipe's `base.attention`.
        device: Where the base will be.
        dtype: What its parameters are stored in.
        model_config: Its configuration; None: one that supports every kernel.

    Raises:
        ClmoeError: The kernel asked for is not installed, or does not fit the model.
    """
    check_attention(wanted, model_config=model_config)
    if wanted != "auto":
        return wanted, f"{wanted}: base.attention"
    if not _flash_installed():
        why = "flash-attn is not installed"
    elif device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        why = f"flash-attn does not run {_short(dtype)} on {device.type}"
    else:
        against = _against("flash_attention_2", model_config)
        if against is None:
            return "flash_attention_2", f"flash_attention_2: installed, {_short(dtype)} on a GPU"
        why = against
    against = _against("sdpa", model_config)
    return ("sdpa", f"sdpa: {why}") if against is None else ("eager", f"eager: {against}")


def check_attention(wanted: str, *, model_config: Any) -> None:
    """Refuse an attention kernel that is not installed or does not fit the model.

    Args:
        wanted: The recipe's `base.attention`.
        model_config: The base's configuration; None: one that supports every kernel.

    Raises:
        ClmoeError: The message says what is in the way.
    """
    against = _against(wanted, model_config)
    if against is not None:
        other = "eager" if _against("sdpa", model_config) else "sdpa"
        raise ClmoeError(
            f"base.attention is {wanted}, but {against}",
            hint=f"use base.attention={other}, or base.attention=auto",
        )
    if wanted == "flash_attention_2" and not _flash_installed():
        raise ClmoeError(
            "base.attention is flash_attention_2, but the package flash-attn is not installed",
            hint="pip install flash-attn --no-build-isolation, or base.attention=sdpa",
        )


def choose_prompt(
    base: Base,
    *,
    model_config: Any,
    tokenizer: Any,
    template: str | None,
    pictures: PictureProcessor | None,
) -> tuple[str, str]:
    """Return the prompt template of a base, and why.

    The prompt of LLaVA-1.5 goes with the tokenizer of Llama 2 (and Vicuna), whose texts end in
    `</s>`; a LLaVA on another decoder was trained with that decoder's own chat template.

    Args:
        base: The recipe's section.
        model_config: The base's configuration.
        tokenizer: Its tokenizer.
        template: The chat template it was shipped with, or None.
        pictures: Its picture processor; None where a picture's number of tokens is fixed.
    """
    if base.prompt != "auto":
        return base.prompt, f"prompt {base.prompt}: base.prompt"
    if base.model == "tiny":
        return "short", "prompt short: the built-in base was trained with it"
    if pictures is not None and pictures.prefix_text:
        return "paligemma", "prompt paligemma: prompts are read in both directions"
    if pictures is not None:
        return "chat", "prompt chat: the model has a processor of its own"
    decoder = str(model_config.text_config.model_type)
    if decoder != "llama":
        return "chat", f"prompt chat: the decoder is {decoder}"
    if tokenizer.eos_token != "</s>":
        return "chat", f"prompt chat: the tokenizer ends texts with {tokenizer.eos_token}"
    if template is not None and "ASSISTANT:" not in template:
        return "chat", "prompt chat: the base's own template is not USER/ASSISTANT"
    return "vicuna_v1", "prompt vicuna_v1: a LLaVA with the tokenizer of Llama 2"


def _flash_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _against(kernel: str, model_config: Any) -> str | None:
    """Return why a model cannot run with a kernel, or None where it can."""
    if model_config is None or kernel not in _SUPPORT:
        return None
    for kind in _classes(model_config):
        if not getattr(kind, _SUPPORT[kernel], False):
            return f"{kind.__name__} does not support {kernel}"
    if kernel == "flash_attention_2" and _looks_both_ways(model_config):
        return (
            f"{next(_classes(model_config)).__name__} lets tokens of a picture see those after "
            "them, which flash-attn would mask"
        )
    return None


def _classes(model_config: Any) -> Iterator[Any]:
    """The classes of the model and of those of its parts that are models of their own."""
    yield _first(AutoModelForImageTextToText._model_mapping[type(model_config)])
    for name in getattr(model_config, "sub_configs", {}):
        part = getattr(model_config, name, None)
        if part is not None and type(part) in AutoModel._model_mapping:
            yield _first(AutoModel._model_mapping[type(part)])


def _first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


def _looks_both_ways(model_config: Any) -> bool:
    """Whether attention in the decoder is not causal everywhere.

    Then the decoder's configuration says so, or the model makes its masks from the tokens' types.
    (Taking `mm_token_type_ids` alone means nothing: Qwen-VL makes positions from them.)
    """
    if getattr(model_config.get_text_config(), "use_bidirectional_attention", None):
        return True
    kind = next(_classes(model_config))
    masks = getattr(kind, "create_masks_for_generate", None)
    taken = set(inspect.signature(masks).parameters) if masks is not None else set()
    forward = inspect.signature(kind.forward).parameters
    return not taken.isdisjoint(_TYPES) or "token_type_ids" in forward


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
