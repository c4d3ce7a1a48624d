"""Adapters of the released code (CL-MoE, MCITlib, EasyCL, CoIN), read as adapters of this project.

Expert i's A_i [r/n, in] are stacked on rows and B_i [out, r/n] on columns; every linear keeps its
own router [n, in]. The released forward pass is Eq 3 with the softmax router of Eq 1 over all n
experts and the scaling lora_alpha / r, where r is the total rank (checked in its source), so that
r and alpha carry over as they are. `task_embedding_dim` is stored and never used there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.interop.foreign_checks import (
    check_base,
    check_experts,
    check_targets,
    first_of,
    notes_of,
    sizes_of_config,
)
from clmoe.interop.foreign_files import read_foreign_files
from clmoe.interop.foreign_keys import FACTORS, PROJECTOR, PROJECTOR_TENSORS, Place, place_of
from clmoe.interop.projector_checks import check_projector
from clmoe.method.merge_report import same_bits
from clmoe.model.adapter_info import (
    PREFIX,
    AdapterInfo,
    a_key,
    b_key,
    natural_order,
    router_key,
)

FFN = {"gate_proj", "up_proj", "down_proj"}
ALL = FFN | {"q_proj", "k_proj", "v_proj", "o_proj"}


@dataclass(frozen=True)
class ForeignAdapter:
    """An adapter of the released code in this project's form.

    Attributes:
        folder: Where it was read from.
        format: What it was recognised as.
        info: Its configuration; `base` is what the source calls its base model, or None.
        dropout: lora_dropout.
        tensors: Stacked tensors by the names of `clmoe.model.adapter_info`.
        aliases: How many tensors had a second, equal name that was dropped.
        ignored: Files and folders that were not read.
        notes: Sentences on what has no effect or was left out.
    """

    folder: Path
    format: str
    info: AdapterInfo
    dropout: float
    tensors: dict[str, Tensor]
    aliases: int
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def read_foreign(folder: Path, *, base: str | None = None) -> ForeignAdapter:
    """Read an adapter folder of the released code; nothing is written.

    Args:
        folder: The folder.
        base: Name of the base model it is for; None: as the source says. Where the base's
            `config.json` is on this machine, the sizes of the tensors are compared with it.

    Raises:
        ClmoeError: A file is damaged or not of these formats; a key is unknown, missing or named
            twice with different values; configuration, tensors and base do not agree.
    """
    files = read_foreign_files(folder)
    config = files.config
    experts, rank, alpha = sizes_of_config(folder, config)
    places, aliases = _place_all(folder, files.tensors)
    linears = natural_order({place.path for place in places if place.kind in FACTORS})
    if not linears:
        raise ClmoeError(f"{folder} holds no experts: no tensor is named loraA.0 or loraB.0")
    check_experts(folder, places, linears, experts=experts, rank=rank)
    check_targets(folder, config, linears)
    notes = notes_of(config)
    tensors: dict[str, Tensor] = {}
    for path in linears:
        for name, kind, axis in ((a_key(path), FACTORS[0], 0), (b_key(path), FACTORS[1], 1)):
            parts = [places[Place(kind, path, i)] for i in range(experts)]
            tensors[name] = _stack(name, parts, axis=axis)
        if experts > 1:
            tensors[router_key(path)] = places[Place("router", path)]
    if experts == 1:
        notes.append("the routers of a single expert always give 1, and were left out")
    projector = {
        place.path: tensor for place, tensor in places.items() if place.kind == "projector"
    }
    if projector and set(projector) != set(PROJECTOR_TENSORS):
        missing = [path for path in PROJECTOR_TENSORS if path not in projector]
        raise ClmoeError(f"{folder} holds a part of a projector: {first_of(missing)} missing")
    tensors |= {f"{PREFIX}{path}": projector[path] for path in PROJECTOR_TENSORS if projector}
    named = files.base_config.get("_name_or_path") or config.get("base_model_name_or_path")
    info = AdapterInfo(
        experts=experts,
        rank=rank,
        alpha=alpha,
        targets=_targets(linears),
        routers="per-linear",
        router_of={path: path for path in linears},
        modules_to_save=(PROJECTOR,) if projector else (),
        base=base or named or None,
    )
    check_projector(folder, tensors, info)
    check_base(folder, files, info, tensors=tensors, chosen=base is not None)
    return ForeignAdapter(
        folder=folder,
        format=_format(config, aliases=aliases, ignored=files.ignored),
        info=info,
        dropout=float(config.get("lora_dropout") or 0.0),
        tensors=tensors,
        aliases=aliases,
        ignored=files.ignored,
        notes=tuple(notes),
    )


def _place_all(
    folder: Path, files: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[Place, Tensor], int]:
    """Every tensor by what it is; a second name of a tensor must hold the same bits."""
    places: dict[Place, Tensor] = {}
    names: dict[Place, str] = {}
    unknown: list[str] = []
    aliases = 0
    for file, tensors in files.items():
        for key, tensor in tensors.items():
            place = place_of(key)
            if place is None:
                unknown.append(f"{key} ({file})")
            elif place not in places:
                places[place], names[place] = tensor, key
            elif _equal(places[place], tensor):
                aliases += 1
            else:
                raise ClmoeError(
                    f"{folder}: {names[place]} and {key} are two names of one tensor, but their "
                    "values differ",
                    hint="the checkpoint is inconsistent: only its author can tell which is right",
                )
    if unknown:
        raise ClmoeError(
            f"{folder}: {len(unknown)} keys match no part of an adapter: {first_of(unknown)}",
            hint="the file is of another method or of a changed layout; nothing was imported",
        )
    return places, aliases


def _format(config: Mapping[str, Any], *, aliases: int, ignored: Sequence[str]) -> str:
    if config["peft_type"] == "MOE_LORA_CoIN":
        return "CoIN"
    traces = ("index_", "value_counts_", "not_aligned/")
    if aliases or any(name.startswith(traces) for name in ignored):
        return "EasyCL"
    return "CL-MoE, official or MCITlib (one layout)"


def _targets(linears: Sequence[str]) -> str | tuple[str, ...]:
    """The shortest pattern for these linears, as `clmoe.model.targets` reads it."""
    of_layer: dict[str, set[str]] = {}
    for path in linears:
        layer, rest = path.split(".layers.")[1].split(".", 1)
        of_layer.setdefault(layer, set()).add(rest.rpartition(".")[2])
    kinds = next(iter(of_layer.values()))
    if any(other != kinds for other in of_layer.values()):
        return tuple(linears)
    return "ffn" if kinds == FFN else "all-linear" if kinds == ALL else tuple(sorted(kinds))


def _stack(name: str, parts: Sequence[Tensor], *, axis: int) -> Tensor:
    if len({part.dtype for part in parts}) > 1:
        raise ClmoeError(f"{name}: the experts are stored in different dtypes")
    return torch.cat(list(parts), dim=axis).contiguous()


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and same_bits(one, two)
