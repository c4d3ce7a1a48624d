"""Does a foreign adapter agree with itself: configuration, tensors, and base model?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from clmoe.errors import ClmoeError
from clmoe.interop.foreign_files import BASE_CONFIG, ForeignFiles, read_json
from clmoe.interop.foreign_keys import FACTORS, Place
from clmoe.interop.projector_checks import READS_HIDDEN, check_projector_of_base
from clmoe.model.adapter_info import CONFIG_FILE, AdapterInfo, a_key
from clmoe.model.tiny import tiny_folder

METHODS = {"MOE_LORA_CLMoE", "MOE_LORA_CoIN"}
_SHOWN = 3
_USED = {"peft_type", "r", "lora_alpha", "lora_dropout", "expert_num", "target_modules"}
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "modules_to_save", "revision", "task_type",
}  # fmt: skip
_REFUSED = {
    "bias": ("none", None), "fan_in_fan_out": (False, None), "use_rslora": (False, None),
    "use_dora": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
}  # fmt: skip


def sizes_of_config(folder: Path, config: Mapping[str, Any]) -> tuple[int, int, float]:
    """n, r and alpha.

    Raises:
        ClmoeError: The method is another one, a field is missing, or a field changes what the
            tensors compute.
    """
    kind = config.get("peft_type")
    if kind not in METHODS:
        hint = "it is an adapter of this project already" if kind == "CLMOE" else None
        known = ", ".join(sorted(METHODS))
        raise ClmoeError(
            f"{folder / CONFIG_FILE} is an adapter of the method {kind!r}, expected one of {known}",
            hint=hint,
        )
    for name, harmless in _REFUSED.items():
        if config.get(name) not in harmless:
            raise ClmoeError(
                f"{folder / CONFIG_FILE}: {name} is {config[name]!r}, which changes what the "
                "tensors compute and cannot be imported"
            )
    for name in ("expert_num", "r"):
        if name in config and type(config[name]) is not int:
            raise ClmoeError(
                f"{folder / CONFIG_FILE}: {name} is {config[name]!r}, expected a whole number"
            )
    try:
        return config["expert_num"], config["r"], float(config["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise ClmoeError(
            f"{folder / CONFIG_FILE} is not a complete configuration: {type(error).__name__} "
            f"{error}"
        ) from error


def check_experts(
    folder: Path, places: Mapping[Place, Tensor], linears: Sequence[str], *, experts: int, rank: int
) -> None:
    """Every expert and router is there, of one size, and as many as the configuration says.

    Raises:
        ClmoeError: Tensors are missing or misshapen, or there are other sizes than it says; the
            message has both.
    """
    numbers = {place.expert for place in places if place.kind in FACTORS}
    found = 1 + max(numbers)
    if len(numbers) < found:
        raise ClmoeError(
            f"{folder} holds experts {', '.join(map(str, sorted(numbers)))}: others are missing"
        )
    wanted = [Place(kind, path, i) for path in linears for kind in FACTORS for i in range(found)]
    wanted += [Place("router", path) for path in linears]
    missing = [_name(place) for place in wanted if place not in places]
    known = set(wanted)
    extra = [_name(p) for p in places if p.kind != "projector" and p not in known]
    if missing or extra:
        said = [f"{len(missing)} tensors are missing: {first_of(missing)}"] * bool(missing)
        said += [f"{len(extra)} routers gate no expert: {first_of(extra)}"] * bool(extra)
        raise ClmoeError(f"{folder} is not complete: {'; '.join(said)}")
    sizes = {tuple(places[Place("A", path, i)].shape[:1]) for path in linears for i in range(found)}
    width = next(iter(sizes))[0] if len(sizes) == 1 and () not in sizes else None
    if width is None:
        raise ClmoeError(f"{folder}: the experts' A_i have different ranks: {sorted(sizes)}")
    if (found, found * width) != (experts, rank):
        raise ClmoeError(
            f"{folder / CONFIG_FILE} says {experts} experts of total rank {rank}, the tensors hold "
            f"{found} experts of total rank {found * width}",
            hint="the configuration is of another checkpoint, or ranks are counted otherwise",
        )
    for path in linears:
        a, b = places[Place("A", path, 0)], places[Place("B", path, 0)]
        reads, writes = (a.shape[-1], b.shape[0]) if a.dim() == b.dim() == 2 else (0, 0)
        shapes = {Place("router", path): (found, reads)}
        for i in range(found):
            shapes |= {Place("A", path, i): (width, reads), Place("B", path, i): (writes, width)}
        for place, shape in shapes.items():
            if tuple(places[place].shape) != shape:
                raise ClmoeError(
                    f"{folder}: {_name(place)} has shape {list(places[place].shape)}, expected "
                    f"{list(shape)} as the other tensors of its linear have it"
                )


def check_targets(folder: Path, config: Mapping[str, Any], linears: Sequence[str]) -> None:
    """`target_modules`, where it is a list, names just the linears that have tensors.

    Raises:
        ClmoeError: It does not; the message has both.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        return
    unused = [t for t in targets if not any(f".{path}".endswith(f".{t}") for path in linears)]
    strange = [p for p in linears if not any(f".{p}".endswith(f".{t}") for t in targets)]
    if unused or strange:
        kinds = sorted({path.rpartition(".")[2] for path in linears})
        raise ClmoeError(
            f"{folder / CONFIG_FILE} targets {', '.join(sorted(targets))}, the tensors adapt "
            f"{', '.join(kinds)}",
            hint="the configuration is of another checkpoint",
        )


def check_base(
    folder: Path,
    files: ForeignFiles,
    info: AdapterInfo,
    *,
    tensors: Mapping[str, Tensor],
    chosen: bool,
) -> None:
    """Compare sizes with the folder's own `config.json`, and with that of a base on this machine.

    Args:
        folder: The adapter's folder, for messages.
        files: What was read of it.
        info: The adapter.
        tensors: Its stacked tensors.
        chosen: Whether a person named the base; what the folder calls it is not looked for.

    Raises:
        ClmoeError: The adapter is of another base; the message has both sizes.
    """
    known = [(str(folder / BASE_CONFIG), files.base_config)]
    if chosen and info.base is not None:
        place = tiny_folder() if info.base == "tiny" else Path(info.base).expanduser()
        if (place / BASE_CONFIG).is_file():
            known.append((f"the base {info.base}", _whole_config(place)))
    for where, config in known:
        text = config.get("text_config") or config
        _check_sizes(folder, text, where, info=info, tensors=tensors)
        check_projector_of_base(folder, tensors, config, where)


def _whole_config(place: Path) -> dict[str, Any]:
    """A base's `config.json`, with the values that it leaves to its model's defaults."""
    written = read_json(place / BASE_CONFIG)
    try:
        found: dict[str, Any] = AutoConfig.from_pretrained(place, trust_remote_code=False).to_dict()
    except (OSError, ValueError, KeyError, TypeError):
        return written
    return found


def _check_sizes(
    folder: Path,
    config: Mapping[str, Any],
    where: str,
    *,
    info: AdapterInfo,
    tensors: Mapping[str, Tensor],
) -> None:
    hidden, inner = config.get("hidden_size"), config.get("intermediate_size")
    layers = config.get("num_hidden_layers")
    hint = "the adapter is of another base model: name it with --base"
    for path in info.router_of:
        number, last = int(path.split(".layers.")[1].split(".")[0]), path.rpartition(".")[2]
        if layers is not None and number >= layers:
            raise ClmoeError(
                f"{folder} adapts layer {number}, but {where} has {layers} layers, from 0",
                hint=hint,
            )
        wanted = hidden if last in READS_HIDDEN else inner if last == "down_proj" else None
        found = tensors[a_key(path)].shape[1]
        if wanted is not None and found != wanted:
            raise ClmoeError(
                f"{folder}: {path} reads {found} values, in {where} it reads {wanted}", hint=hint
            )


def notes_of(config: Mapping[str, Any]) -> list[str]:
    """What a person should know of a configuration's other fields."""
    notes = []
    if "task_embedding_dim" in config:
        notes.append(
            f"task_embedding_dim {config['task_embedding_dim']} has no effect: the released code "
            "stores it and never uses it"
        )
    known = _USED | _WITHOUT_EFFECT | _REFUSED.keys() | {"task_embedding_dim"}
    strange = [name for name in config if name not in known]
    if strange:
        notes.append(
            f"{CONFIG_FILE} also has {', '.join(strange)}: unknown here and ignored; if the code "
            "that wrote it computes with them, this adapter answers otherwise"
        )
    return notes


def first_of(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _name(place: Place) -> str:
    what = "router" if place.kind == "router" else f"{place.kind}_{place.expert}"
    return f"{place.path} {what}"
