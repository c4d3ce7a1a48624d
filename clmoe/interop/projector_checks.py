"""Does an adapter's projector agree with itself, with the experts, and with a base model?

LLaVA's projector is two linears, vision width -> decoder width -> decoder width, each with a bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.interop.foreign_keys import PROJECTOR_TENSORS
from clmoe.model.adapter_info import PREFIX, AdapterInfo, a_key

READS_HIDDEN = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
"""Linears whose input is as wide as the decoder."""
_LLAVAS = {"llava", "llava_next", "llava_onevision"}


def check_projector(folder: Path, tensors: Mapping[str, Tensor], info: AdapterInfo) -> None:
    """Compare a projector's tensors with each other, and with what the adapted linears read.

    An adapter without this projector passes.

    Args:
        folder: The adapter's folder, for messages.
        tensors: Its tensors by the names of `clmoe.model.adapter_info`.
        info: Its configuration.

    Raises:
        ClmoeError: A tensor has another shape than the others ask for; the message has both.
    """
    found = _shapes(tensors)
    if not found:
        return
    wide, tall = found["linear_1.weight"], found["linear_2.weight"]
    reads, hidden = wide[-1] if len(wide) == 2 else 0, wide[0] if len(wide) else 0
    writes = tall[0] if len(tall) else 0
    wanted = {
        "linear_1.weight": (hidden, reads),
        "linear_1.bias": (hidden,),
        "linear_2.weight": (writes, hidden),
        "linear_2.bias": (writes,),
    }
    for name, shape in wanted.items():
        if found[name] != shape or 0 in shape:
            raise ClmoeError(
                f"{folder}: {name} of the projector has shape {list(found[name])}, expected "
                f"{list(shape)} as its other tensors have it",
                hint="the projector is of another checkpoint, or damaged",
            )
    for path in info.router_of:
        decoder = tensors[a_key(path)].shape[1]
        if path.rpartition(".")[2] in READS_HIDDEN and writes != decoder:
            raise ClmoeError(
                f"{folder}: the projector gives {writes} values, {path} reads {decoder}",
                hint="projector and experts are of different checkpoints",
            )


def check_projector_of_base(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str
) -> None:
    """Compare a projector that agrees with itself with a base's configuration.

    Args:
        folder: The adapter's folder, for messages.
        tensors: Its tensors.
        config: The base's `config.json`; sizes that it does not say are not compared.
        where: What the configuration is of, for messages.

    Raises:
        ClmoeError: The widths differ; the message has both.
    """
    found = _shapes(tensors)
    if not found:
        return
    hidden, vision = (config.get("text_config") or config).get("hidden_size"), _vision(config)
    hidden_of_it, vision_of_it = found["linear_1.weight"]
    for what, wanted, has in (
        ("reads pictures", vision, vision_of_it),
        ("writes into the decoder", hidden, found["linear_2.weight"][0]),
        ("has between its linears", hidden, hidden_of_it),
    ):
        if wanted is not None and has != wanted:
            raise ClmoeError(
                f"{folder}: the projector {what} {has} values wide, in {where} it is {wanted}",
                hint="the adapter is of another base model: name it with --base",
            )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by the ends of the names; nothing where a part of this projector is not there."""
    names = {f"{PREFIX}{path}": path.split(".", 2)[2] for path in PROJECTOR_TENSORS}
    if not all(name in tensors for name in names):
        return {}
    return {end: tuple(tensors[name].shape) for name, end in names.items()}


def _vision(config: Mapping[str, Any]) -> int | None:
    """Width of the pictures' features: of transformers' LLaVAs, or as the released code says it."""
    if config.get("model_type") not in _LLAVAS:
        return config.get("mm_hidden_size")
    layers = config.get("vision_feature_layer", 1)
    width = (config.get("vision_config") or {}).get("hidden_size")
    return None if width is None else width * (len(layers) if isinstance(layers, list) else 1)
