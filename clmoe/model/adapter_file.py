"""Saving and loading an adapter strictly: every tensor accounted for, complete and finite.

The files are those of PEFT's `save_pretrained` (`adapter_config.json`, `adapter_model.safetensors`)
and load with `PeftModel.from_pretrained` to the same bits. PEFT itself warns about a missing tensor
and says nothing about one too many; here both are errors, and nothing is loaded then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.model.adapter_info import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterInfo,
    expected_shapes,
    read_adapter_info,
)
from clmoe.model.config import ClmoeConfig
from clmoe.model.tuner import attach

_FIELDS_OF_ADAPTER = ("experts", "r", "alpha", "routers", "router_of", "modules_to_save")


def adapter_tensors(model: PeftModel, *, adapter_name: str = "default") -> dict[str, Tensor]:
    """Return copies of an adapter's tensors on the CPU, whole, by their names in the file.

    Sharded parameters (DTensor, or those of DeepSpeed's ZeRO-3) are gathered, which every process
    must take part in.
    """
    with _gathered(model):
        state: dict[str, Tensor] = get_peft_model_state_dict(
            model, adapter_name=adapter_name, save_embedding_layers=False
        )
        return {
            key: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)
            .detach()
            .to("cpu", copy=True)
            for key, tensor in state.items()
        }


def is_sharded(model: Any) -> bool:
    """Whether processes hold parts of the model's parameters only."""
    return any(map(is_shard, model.parameters()))


def is_shard(parameter: Tensor) -> bool:
    """Whether this process holds a part of the parameter only (a DTensor, or one of ZeRO-3)."""
    return hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id")


def _gathered(model: Any) -> AbstractContextManager[Any]:
    """Put the trained parameters that ZeRO-3 partitioned together for a while."""
    parts = [p for p in model.parameters() if p.requires_grad and hasattr(p, "ds_id")]
    if not parts:
        return nullcontext()
    from deepspeed.zero import GatheredParameters

    gathered: AbstractContextManager[Any] = GatheredParameters(parts)
    return gathered


def save_adapter(
    model: PeftModel, directory: Path, *, adapter_name: str = "default", write: bool = True
) -> None:
    """Write an adapter into a folder, which is made if needed; equal adapters give equal bytes.

    Args:
        model: The model with the adapter attached.
        directory: Where to; each file replaces an older one at once, when it is complete.
        adapter_name: PEFT's name of the adapter.
        write: False: only take part in gathering what is sharded, for the process that writes.

    Raises:
        ClmoeError: A tensor is missing, empty, misshapen or not finite; nothing is written.
    """
    config: ClmoeConfig = model.peft_config[adapter_name]
    tensors = {
        key: tensor.contiguous()
        for key, tensor in adapter_tensors(model, adapter_name=adapter_name).items()
    }
    shapes = _shapes_in_model(model, adapter_name)
    if not write:
        return
    fields = config.to_dict() | {"inference_mode": True}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _check_values(tensors, what="the adapter to save")
    _check_names(tensors, shapes, what="the adapter to save")
    unfinished = directory / f".{WEIGHTS_FILE}.partial"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, directory / WEIGHTS_FILE)
    unfinished = directory / f".{CONFIG_FILE}.partial"
    unfinished.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(unfinished, directory / CONFIG_FILE)


def load_adapter(
    model: Any, directory: Path, *, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """Load an adapter folder onto a base model, or into a model that already carries one like it.

    Args:
        model: A base model, which is wrapped, or a PEFT model. Where the PEFT model has an adapter
            of this name, its weights are replaced, and the two configurations must agree.
        directory: The adapter folder.
        adapter_name: PEFT's name for it.
        trainable: Whether the adapter is to be trained further.

    Experts, routers and modules of `modules_to_save` are loaded to the bit, in float32.

    Returns:
        The PEFT model, with this adapter active.

    Raises:
        ClmoeError: The folder is not a complete adapter, or it does not fit the model; the message
            says what was found and what was expected, and the model is as it was.
    """
    directory = Path(directory)
    info = read_adapter_info(directory)
    tensors = read_tensors(directory, info)
    config = ClmoeConfig.from_pretrained(str(directory))
    config.inference_mode = not trainable
    undo: Callable[[], object] | None = None
    if not isinstance(model, PeftModel):
        model = attach(model, config, adapter_name=adapter_name)
        undo = model.unload
    elif adapter_name not in model.peft_config:
        model.add_adapter(adapter_name, config)
        undo = partial(model.delete_adapter, adapter_name)
    else:
        _check_same_kind(model.peft_config[adapter_name], config, directory)
    try:
        _check_names(tensors, _shapes_in_model(model, adapter_name), what=str(directory))
    except ClmoeError:
        if undo is not None:
            undo()
        raise
    left = set_peft_model_state_dict(model, tensors, adapter_name=adapter_name).unexpected_keys
    assert not left, f"PEFT did not place {left}"
    model.set_adapter(adapter_name, inference_mode=not trainable)
    return model


def read_tensors(directory: Path, info: AdapterInfo | None = None) -> dict[str, Tensor]:
    """Read an adapter's tensors and check them against its own configuration, without a model.

    Raises:
        ClmoeError: The file is missing or damaged; a tensor is missing, unknown, empty, of another
            rank or number of experts than the configuration says, or not finite.
    """
    info = info or read_adapter_info(directory)
    path = Path(directory) / WEIGHTS_FILE
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise ClmoeError(f"{directory} holds no weights: {WEIGHTS_FILE} is missing") from None
    except (SafetensorError, OSError) as error:
        raise ClmoeError(
            f"{path} is damaged: {error}", hint="it was cut short or overwritten; make it again"
        ) from error
    expected = expected_shapes(info)
    for key in tensors:
        if any(f".{module}." in key for module in info.modules_to_save):
            expected.setdefault(key, tuple(tensors[key].shape))  # type: ignore[arg-type]
    _check_names(tensors, expected, what=str(path))
    _check_values(tensors, what=str(path))
    return tensors


def _shapes_in_model(model: PeftModel, adapter_name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the model's own structure asks for, by name in the file.

    Every process must take part where parameters are sharded: ZeRO-3 leaves them empty.
    """
    with _gathered(model):
        state = get_peft_model_state_dict(
            model, adapter_name=adapter_name, save_embedding_layers=False
        )
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    config: ClmoeConfig = model.peft_config[adapter_name]
    base: Any = model.get_base_model()
    info = _info_of(config)
    for key in expected_shapes(info):
        path, _, what = key.removesuffix(".weight").rpartition(".")
        layer: Any = base.get_submodule(path.removeprefix("base_model.model."))
        if what == "clmoe_A":
            shapes[key] = (config.r, layer.in_features)
        elif what == "clmoe_B":
            shapes[key] = (layer.out_features, config.r)
        else:
            hidden = base.config.get_text_config().hidden_size
            shapes[key] = (
                config.experts,
                hidden if config.routers == "per-block" else layer.in_features,
            )
    return shapes


def _info_of(config: ClmoeConfig) -> AdapterInfo:
    assert config.router_of is not None, "the adapter is attached"
    return AdapterInfo(
        experts=config.experts,
        rank=config.r,
        alpha=config.alpha,
        targets=config.targets if isinstance(config.targets, str) else tuple(config.targets),
        routers=config.routers,
        router_of=config.router_of,
        modules_to_save=tuple(config.modules_to_save or ()),
        base=config.base_model_name_or_path,
    )


def _check_same_kind(attached: ClmoeConfig, saved: ClmoeConfig, directory: Path) -> None:
    for name in _FIELDS_OF_ADAPTER:
        if getattr(attached, name) != getattr(saved, name):
            shown = [str(getattr(config, name))[:80] for config in (saved, attached)]
            raise ClmoeError(
                f"{directory} has {name} = {shown[0]}, the attached adapter has {shown[1]}",
                hint="load it onto the base model, or under another adapter name",
            )


def _check_names(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int | None, ...]], *, what: str
) -> None:
    missing = [key for key in expected if key not in tensors]
    unknown = [key for key in tensors if key not in expected]
    if missing or unknown:
        raise ClmoeError(
            f"{what} holds {len(tensors)} tensors, expected {len(expected)}: {len(missing)} are "
            f"missing, {len(unknown)} are unknown (first: {(missing or unknown)[0]})",
            hint="the file is of another base model or another configuration, or was edited",
        )
    for key, shape in expected.items():
        found = tuple(tensors[key].shape)
        fits = len(found) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, found, strict=True)
        )
        if not fits or not tensors[key].numel():
            wanted = [size if size is not None else "any" for size in shape]
            cause = (
                "a sharded parameter was not gathered"
                if not tensors[key].numel()
                else "another rank, number of experts or base model"
            )
            raise ClmoeError(
                f"{what}: {key} has shape {list(found)}, expected {wanted}; likely cause: {cause}"
            )


def _check_values(tensors: Mapping[str, Tensor], *, what: str) -> None:
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ClmoeError(
                f"{what}: {bad} of {tensor.numel()} values of {key} are not finite",
                hint="training diverged; lower the learning rate",
            )
