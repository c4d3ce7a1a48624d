"""The frozen vision-language model that adapters are attached to.

`tiny` is built in; any other name is a folder or a hub model that `AutoModelForImageTextToText` of
transformers can load. Where vision tower and projector are frozen, a picture's projected features
never change: `project_images` computes them once, and `embed` puts them back into a prompt.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from clmoe.errors import ClmoeError

if TYPE_CHECKING:
    from clmoe.recipe.schema import Base

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny_llava"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Backbone:
    """A loaded base model and what belongs to it.

    Attributes:
        model: The model, in eval mode, every parameter frozen.
        tokenizer: Its tokenizer.
        image_processor: Turns pictures into `pixel_values`.
        name: What the recipe calls it: "tiny", a hub name or a folder.
        prompt: Prompt template: "short", "vicuna_v1" or "chat".
        image_token: The text that stands for one image token in a prompt.
        image_token_id: Its id.
        image_tokens: Image tokens per picture, or None where that depends on the picture.
        projector: Path of the projector in the model, or None where there is none by that name.
        dtype: What the parameters are stored in.
        choices: Why the dtype and the attention kernel were chosen, a sentence each.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    name: str
    prompt: str
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
        ClmoeError: The model is not there and cannot be fetched, is no vision-language model, or
            asks for an attention kernel that is not installed.
    """
    device = torch.device(device)
    source = _source(config)
    dtype, why_dtype = _choose_dtype(config.dtype, device, dtype)
    attention, why_attention = _choose_attention(config.attention, device, dtype)
    where: dict[str, Any] = {} if Path(source).is_dir() else {"revision": config.revision}
    with _QuietLoading():
        model_config = _fetch(config, AutoConfig, source, **where)
        if type(model_config) not in AutoModelForImageTextToText._model_mapping:
            raise ClmoeError(
                f"{config.model} is a {type(model_config).__name__.removesuffix('Config')} model, "
                "not a vision-language model that answers in text",
                hint="use for example base.model=llava-hf/llava-1.5-7b-hf",
            )
        tokenizer = _fetch(config, AutoTokenizer, source, **where)
        images = _fetch(config, AutoImageProcessor, source, **where)
        model = _fetch(
            config,
            AutoModelForImageTextToText,
            source,
            dtype=dtype,
            attn_implementation=attention,
            **where,
        )
    model = model.to(device).eval().requires_grad_(False)
    token_id = getattr(model.config, "image_token_id", None)
    if token_id is None:
        raise ClmoeError(f"{config.model} has no image token ({type(model.config).__name__})")
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        image_processor=images,
        name=config.model,
        prompt=_prompt(config, model),
        image_token=tokenizer.convert_ids_to_tokens(token_id),
        image_token_id=int(token_id),
        image_tokens=_image_tokens(model.config),
        projector=next(
            (p for p, _ in model.named_modules() if p.endswith("multi_modal_projector")), None
        ),
        dtype=dtype,
        choices=(why_dtype, why_attention),
    )


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


def _source(config: Base) -> str:
    if config.model != "tiny":
        looks_like_path = config.model.startswith(("/", ".", "~")) or config.model.count("/") > 1
        folder = Path(config.model).expanduser()
        if looks_like_path and not folder.is_dir():
            raise ClmoeError(f"base.model is the folder {config.model}, which does not exist")
        return str(folder) if folder.is_dir() else config.model
    if not TINY.is_dir():
        raise ClmoeError(f"the built-in base model is missing from the installation ({TINY})")
    return str(TINY)


def _fetch(config: Base, kind: Any, source: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source, **options)
    except ImportError as error:
        raise ClmoeError(
            f"{config.model} needs a package that is not installed: {error}",
            hint="pip install 'clmoe[vlm]'",
        ) from error
    except (OSError, ValueError) as error:
        revision = f" --revision {config.revision}" if config.revision else ""
        if Path(source).is_dir():
            raise ClmoeError(
                f"{source} is not a complete vision-language model: {_first_line(error)}",
                hint="it needs config.json, safetensors, tokenizer and preprocessor files",
            ) from error
        raise ClmoeError(
            f"the base model {config.model} is not on this machine and cannot be fetched: "
            f"{_first_line(error)}",
            hint=f"hf download {config.model}{revision}",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _choose_dtype(
    wanted: str, device: torch.device, override: torch.dtype | None
) -> tuple[torch.dtype, str]:
    if override is not None:
        return override, f"{_short(override)}: given by the caller"
    if wanted != "auto":
        return _DTYPES[wanted], f"{wanted}: base.dtype"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "bfloat16: the GPU supports it"
    if device.type == "cuda":
        return torch.float32, "float32: this GPU has no bfloat16"
    return torch.float32, f"float32: the device is {device.type}"


def _choose_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    installed = importlib.util.find_spec("flash_attn") is not None
    if wanted == "flash_attention_2" and not installed:
        raise ClmoeError(
            "base.attention is flash_attention_2, but the package flash-attn is not installed",
            hint="pip install flash-attn --no-build-isolation, or base.attention=sdpa",
        )
    if wanted != "auto":
        return wanted, f"{wanted}: base.attention"
    if not installed:
        return "sdpa", "sdpa: flash-attn is not installed"
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return "flash_attention_2", f"flash_attention_2: installed, {_short(dtype)} on a GPU"
    return "sdpa", f"sdpa: flash-attn does not run {_short(dtype)} on {device.type}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _prompt(config: Base, model: Any) -> str:
    if config.prompt != "auto":
        return config.prompt
    if config.model == "tiny":
        return "short"
    return "vicuna_v1" if model.config.model_type == "llava" else "chat"


def _image_tokens(config: Any) -> int | None:
    """Return LLaVA's image tokens per picture: one a patch, plus the class token where kept."""
    if config.model_type != "llava":
        return None
    side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
    return side * side + int(config.vision_feature_select_strategy != "default")


class _QuietLoading:
    """Loads without transformers' progress bars: the library prints nothing."""

    def __enter__(self) -> None:
        self.shown = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.shown:
            transformers.utils.logging.enable_progress_bar()
