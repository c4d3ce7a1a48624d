"""The sizes of a base and its adapter, counted without weights: the model on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from clmoe.errors import ClmoeError
from clmoe.model.targets import decoder_blocks, resolve_targets
from clmoe.recipe.schema import Adapter


@dataclass(frozen=True)
class Tower:
    """A vision tower of one width.

    Attributes:
        layers: Transformer blocks.
        hidden: Width between them.
        wide: Width inside their MLPs.
        tokens: Patches of a picture, and the class token where there is one.
        side: Pixels along each side of a picture.
    """

    layers: int
    hidden: int
    wide: int
    tokens: int
    side: int


@dataclass(frozen=True)
class BaseShape:
    """Everything that memory depends on and that the configurations decide.

    Attributes:
        parameters: Parameters of the base, tied ones once.
        quantisable: Those of them that NF4 packs: the weights of the decoder blocks' linears.
        largest: The largest of these weights.
        layers: Decoder blocks, L.
        hidden: Width between them, H.
        wide: Width inside their MLPs, F.
        heads: Query heads.
        kv_heads: Key and value heads.
        head: Width of a head.
        vocabulary: Size of the output layer, V.
        adapted: The adapted linears of the last decoder block: last name -> (in, out).
        experts: n.
        rank: r.
        shared: Whether a block's linears share a router.
        dropout: Whether the experts' input is dropped out.
        trainable: Trained parameters: A, B and routers of all blocks.
        projector: Parameters of the projector, P; trained only where the caller says so.
        tower: The vision tower, or None where its configuration has other names.
    """

    parameters: int
    quantisable: int
    largest: int
    layers: int
    hidden: int
    wide: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    adapted: dict[str, tuple[int, int]]
    experts: int
    rank: int
    shared: bool
    dropout: bool
    trainable: int
    projector: int
    tower: Tower | None


def base_shape(model_config: Any, adapter: Adapter) -> BaseShape:
    """Count a base and the adapter that a recipe would attach to it; no weight is made.

    Args:
        model_config: The base's configuration, as `AutoConfig` reads it.
        adapter: The recipe's `adapter` section.

    Raises:
        ClmoeError: The model cannot be made from its configuration, or its decoder is not one that
            experts can be attached to.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(model_config)
    except (ImportError, ValueError) as error:
        raise ClmoeError(
            f"no model can be made from this {type(model_config).__name__}: {error}",
            hint="use for example base.model=llava-hf/llava-1.5-7b-hf",
        ) from error
    blocks = decoder_blocks(model)
    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    plan = resolve_targets(model, targets=targets, routers=adapter.routers)
    sizes = {
        path: (int(linear.in_features), int(linear.out_features))
        for path, linear in ((p, model.get_submodule(p)) for p in plan.router_of)
    }
    last = f"{list(blocks)[-1]}."
    weights = [
        module.weight.numel()
        for block in blocks.values()
        for module in block.modules()
        if isinstance(module, nn.Linear)
    ]
    routers = sum(plan.router_width.values()) * adapter.experts if adapter.experts > 1 else 0
    text = model_config.get_text_config()
    heads = int(text.num_attention_heads)
    return BaseShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        quantisable=sum(weights),
        largest=max(weights),
        layers=len(blocks),
        hidden=int(text.hidden_size),
        wide=int(text.intermediate_size),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        vocabulary=int(text.vocab_size),
        adapted={p.rpartition(".")[2]: size for p, size in sizes.items() if p.startswith(last)},
        experts=adapter.experts,
        rank=adapter.rank,
        shared=adapter.routers == "per-block",
        dropout=adapter.dropout > 0,
        trainable=sum(adapter.rank * (i + o) for i, o in sizes.values()) + routers,
        projector=sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if "multi_modal_projector" in name
        ),
        tower=_tower(getattr(model_config, "vision_config", None)),
    )


def image_tokens(model_config: Any) -> int | None:
    """Return the image tokens of a picture, or None where they depend on the picture.

    LLaVA has one a patch, and the class token where it is kept; others say it in their
    configuration.
    """
    vision = getattr(model_config, "vision_config", None)
    tower = _tower(vision)
    if model_config.model_type == "llava" and tower is not None:
        dropped = model_config.vision_feature_select_strategy == "default"
        beside = int(getattr(vision, "model_type", "") == "clip_vision_model")
        return tower.tokens - 1 + beside - int(dropped)
    said = [getattr(model_config, name, None) for name in ("mm_tokens_per_image", "image_seq_len")]
    return next((int(tokens) for tokens in said if isinstance(tokens, int)), None)


def _tower(vision: Any) -> Tower | None:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "image_size", "patch_size")
    sizes = [getattr(vision, name, None) for name in names]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(names):
        return None
    layers, hidden, wide, side, patch = known
    return Tower(layers, hidden, wide, (side // patch) ** 2 + 1, side)
