"""The frozen vision-language model that adapters are attached to.

`tiny` is built in; any other name is a folder or a hub model that `AutoModelForImageTextToText` of
transformers can load. LLaVA-1.5 gives every picture the same number of image tokens, and while its
vision tower and projector are frozen, a picture's projected features never change: `project_images`
computes them once, and `embed` puts them back into a prompt. Every other model reads pictures
through its own processor (`clmoe.model.vision`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from clmoe.errors import ClmoeError
from clmoe.model.choices import (
    check_attention,
    choose_attention,
    choose_dtype,
    choose_prompt,
)
from clmoe.model.fetching import Source, quiet_loading
from clmoe.model.quantization import loading_options, settle
from clmoe.model.targets import decoder_blocks
from clmoe.model.vision import PictureProcessor
from clmoe.model.weights import check_loaded, check_weight_files

if TYPE_CHECKING:
    from clmoe.recipe.schema import Base

_FIXED_TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # tokens beside the patches


@dataclass(frozen=True)
class Backbone:
    """A loaded base model and what belongs to it.

    Attributes:
        model: The model, in eval mode, every parameter frozen.
        tokenizer: Its tokenizer.
        image_processor: Turns pictures into `pixel_values`.
        pictures: Shows pictures to the model, or None where their number of image tokens is fixed.
        name: What the recipe calls it: "tiny", a hub name or a folder.
        prompt: Prompt template: "short", "vicuna_v1", "chat" or "paligemma".
        chat_template: The chat template it was shipped with, or None.
        image_token: The text that stands for one image token in a prompt.
        image_token_id: Its id.
        image_tokens: Image tokens per picture, or None where that depends on the picture.
        projector: Path of the projector in the model, or None where there is none by that name.
        dtype: What the parameters are stored in.
        choices: Why dtype, attention kernel and prompt were chosen, a sentence each.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    pictures: PictureProcessor | None
    name: str
    prompt: str
    chat_template: str | None
    image_token: str
    image_token_id: int
    image_tokens: int | None
    projector: str | None
    dtype: torch.dtype
    choices: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device


def load_backbone(
    config: Base, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Backbone:
    """Load the base model of a recipe.

    Args:
        config: The recipe's `base` section.
        device: Where to.
        dtype: Overrides the recipe's `base.dtype`.

    Raises:
        UsageError: A folder is given with a revision.
        ClmoeError: The model is not there and cannot be fetched, is no decoder-only vision-language
            model, has no processor, lacks weights, does not run with the attention kernel asked
            for, or needs a package that is not installed.
    """
    device = torch.device(device)
    source = Source(config)
    dtype, why_dtype = choose_dtype(config.dtype, device=device, override=dtype)
    with quiet_loading():
        parts = _parts(config, source)
        model_config, tokenizer, processor = parts.config, parts.tokenizer, parts.processor
        attention, why_attention = choose_attention(
            config.attention, device=device, dtype=dtype, model_config=model_config
        )
        options = loading_options(config, model_config=model_config, device=device, dtype=dtype)
        model = _model(config, source, dtype=dtype, attn_implementation=attention, **options)
    model = settle(model, device=device).eval().requires_grad_(False)
    decoder_blocks(model)  # it has a decoder, or this says what it has instead
    token_id = getattr(model.config, "image_token_id", None)
    if token_id is None:
        raise ClmoeError(f"{config.model} has no image token ({type(model.config).__name__})")
    pictures = None
    if processor is not None:
        pictures = PictureProcessor(processor, model=model, name=config.model)
    template = _chat_template(processor) or _chat_template(tokenizer) or source.chat_template()
    prompt, why_prompt = choose_prompt(
        config,
        model_config=model.config,
        tokenizer=tokenizer,
        template=template,
        pictures=pictures,
    )
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        image_processor=parts.images,
        pictures=pictures,
        name=config.model,
        prompt=prompt,
        chat_template=template,
        image_token=tokenizer.convert_ids_to_tokens(token_id),
        image_token_id=int(token_id),
        image_tokens=_image_tokens(model_config),
        projector=next(
            (p for p, _ in model.named_modules() if p.endswith("multi_modal_projector")), None
        ),
        dtype=dtype,
        choices=(why_dtype, why_attention, why_prompt),
    )


def check_base(config: Base) -> None:
    """Raise what `load_backbone` would raise of everything but what is in the weights.

    Of those only the files' sizes and headers are looked at, where they are on this machine.
    """
    with quiet_loading():
        _parts(config, Source(config))


@dataclass(frozen=True)
class _Parts:
    config: Any
    tokenizer: Any
    images: Any
    processor: Any  # None where the number of image tokens is fixed


def _parts(config: Base, source: Source) -> _Parts:
    model_config = source.fetch(AutoConfig)
    _check_kind(config, model_config)
    check_attention(config.attention, model_config=model_config)
    if source.folder is not None:
        check_weight_files(source.folder)
    if _image_tokens(model_config) is None:
        processor = _processor(config, source)
        return _Parts(model_config, processor.tokenizer, processor.image_processor, processor)
    # The same pixels whether torchvision is installed or not.
    images = source.fetch(AutoImageProcessor, backend="pil")
    return _Parts(model_config, _padding(config, source.fetch(AutoTokenizer)), images, None)


def _model(config: Base, source: Source, **options: Any) -> Any:
    # A parameter of another shape would be an error without the names that `check_loaded` gives.
    model, found = source.fetch(
        AutoModelForImageTextToText,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    check_loaded(model, found, name=config.model)
    return model


def choose_kernels(
    config: Base, *, device: torch.device, model_config: Any = None
) -> tuple[torch.dtype, str, str, str]:
    """Return the dtype and the attention kernel that a base would get on a device, and why each.

    Args:
        config: The recipe's `base` section.
        device: Where the base would be.
        model_config: The base's own configuration; None: one that supports every kernel.

    Raises:
        ClmoeError: The recipe asks for an attention kernel that is not installed or does not fit.
    """
    dtype, why_dtype = choose_dtype(config.dtype, device=device)
    attention, why_attention = choose_attention(
        config.attention, device=device, dtype=dtype, model_config=model_config
    )
    return dtype, attention, why_dtype, why_attention


def project_images(backbone: Backbone, pixel_values: Tensor) -> Tensor:
    """Return pictures as the decoder sees them: vision tower, then projector.

    Args:
        backbone: A backbone with a fixed number of image tokens per picture (LLaVA).
        pixel_values: The pictures, [batch, channels, height, width].

    Returns:
        Features [batch, image tokens, hidden]. They carry no gradient unless the projector is
        trained.

    Raises:
        ClmoeError: The model's image tokens depend on the picture; run it on `pixel_values`.
    """
    if backbone.image_tokens is None:
        raise ClmoeError(
            f"{backbone.name} has no fixed number of image tokens, so features cannot be kept apart"
        )
    pixels = pixel_values.to(device=backbone.device, dtype=backbone.dtype)
    found = backbone.model.get_image_features(pixel_values=pixels)
    features = getattr(found, "pooler_output", found)
    return features if isinstance(features, Tensor) else torch.stack(list(features))


def embed(backbone: Backbone, input_ids: Tensor, features: Tensor) -> Tensor:
    """Return `inputs_embeds` for prompts whose pictures were projected before.

    Args:
        backbone: The backbone.
        input_ids: The prompts, [batch, tokens], each with its image tokens.
        features: The pictures in the prompts' order, [pictures, image tokens, hidden].

    Returns:
        Embeddings [batch, tokens, hidden], which give the same logits as `pixel_values` do.

    Raises:
        ClmoeError: The prompts hold another number of image tokens than the features.
    """
    embeds: Tensor = backbone.model.get_input_embeddings()(input_ids)
    mask = input_ids == backbone.image_token_id
    given, wanted = features.shape[0] * features.shape[1], int(mask.sum())
    if given != wanted:
        raise ClmoeError(
            f"the prompts hold {wanted} image tokens, the pictures {given} features",
            hint="give each prompt its picture, and do not cut prompts through their image tokens",
        )
    flat = features.to(device=embeds.device, dtype=embeds.dtype)
    return embeds.masked_scatter(mask.unsqueeze(-1), flat)


def _check_kind(config: Base, found: Any) -> None:
    kind = type(found).__name__.removesuffix("Config")
    if type(found) not in AutoModelForImageTextToText._model_mapping:
        raise ClmoeError(
            f"{config.model} is a {kind} model, not a vision-language model that answers in text",
            hint="use for example base.model=llava-hf/llava-1.5-7b-hf",
        )
    parts = (found, getattr(found, "text_config", None))
    if any(getattr(part, "is_encoder_decoder", False) for part in parts):
        raise ClmoeError(
            f"{config.model} is a {kind} model with an encoder and a decoder; "
            "experts are for decoder-only models",
            hint="use for example base.model=llava-hf/llava-1.5-7b-hf",
        )


def _processor(config: Base, source: Source) -> Any:
    found = source.fetch(AutoProcessor)
    parts = ("tokenizer", "image_processor", "image_token")
    missing = [part for part in parts if getattr(found, part, None) is None]
    if missing:
        raise ClmoeError(
            f"{config.model} has no processor for pictures: its {type(found).__name__} lacks "
            f"{', '.join(missing)}",
            hint="it needs processor_config.json, or preprocessor_config.json with processor_class",
        )
    _padding(config, found.tokenizer)
    return found


def _padding(config: Base, tokenizer: Any) -> Any:
    """Give a tokenizer without a padding token one: padding is masked, whatever it is."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ClmoeError(f"{config.model} has no token for padding, and none that could stand in")
    return tokenizer


def _chat_template(part: Any) -> str | None:
    found = getattr(part, "chat_template", None)
    return found.get("default") if isinstance(found, dict) else found


def _image_tokens(config: Any) -> int | None:
    """Return LLaVA's image tokens per picture: one a patch, plus the class token where kept."""
    if config.model_type != "llava" or config.vision_config.model_type not in _FIXED_TOWERS:
        return None
    side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
    tokens = side * side + _FIXED_TOWERS[config.vision_config.model_type]
    return tokens - int(config.vision_feature_select_strategy == "default")
