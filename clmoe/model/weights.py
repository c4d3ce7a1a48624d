"""A base's weights: are the files whole, and did every parameter come from them.

transformers gives a parameter that no file holds a random value and only logs it, so both are
checked here: the files before anything is made of them, the names after loading.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from clmoe.errors import ClmoeError
from clmoe.events import Note, emit

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 3
_HINT = "copy or download the folder again"


def check_weight_files(folder: Path) -> None:
    """Refuse a folder whose weight files are missing or cut short; no weight is read.

    Args:
        folder: A base model's folder.

    Raises:
        ClmoeError: There is no weight file, one that the index names is missing, or the size of a
            safetensors file is not what its header says.
    """
    for name in _WHOLE:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [name]
        elif index.is_file():
            files = _named_in(index)
        else:
            continue
        _check_each(folder, files)
        return
    raise ClmoeError(
        f"{folder} is not a complete vision-language model: it has neither {_WHOLE[0]} nor "
        f"{_WHOLE[0]}.index.json",
        hint=_HINT,
    )


def check_loaded(model: Any, found: Mapping[str, Any], *, name: str) -> None:
    """Refuse a model with parameters that its files do not hold; note files that hold more.

    Args:
        model: The model that was loaded.
        found: What `from_pretrained(..., output_loading_info=True)` says. Tied parameters, and
            those that the model's class makes itself, are not in it.
        name: The base model's name.

    Raises:
        ClmoeError: A parameter is missing from the files, or has another shape there.
    """
    missing = sorted(found["missing_keys"])
    other = {key: (list(stored), list(made)) for key, stored, made in found["mismatched_keys"]}
    other |= _packed_otherwise(model)
    if missing or other:
        faults = [f"{len(missing)} are missing ({_some(missing)})"] if missing else []
        shapes = [f"{key} is {a} there, {b} in the model" for key, (a, b) in sorted(other.items())]
        faults += [f"{len(other)} have another shape ({_some(shapes)})"] if other else []
        raise ClmoeError(
            f"the weight files of {name} do not hold every weight of the model: "
            f"{'; '.join(faults)}",
            hint="config.json and the weights are not of one model, or a file was edited; "
            "copy or download the base model again",
        )
    unused = sorted(k for k in found["unexpected_keys"] if k.endswith((".weight", ".bias")))
    if unused:
        text = f"{name}: its files hold {len(unused)} weights that the model does not use"
        emit(Note(f"{text} ({_some(unused)})", level="warning"))


def _packed_otherwise(model: Any) -> dict[str, tuple[list[int], list[int]]]:
    """Quantised weights of another shape than their linear's: transformers compares only others."""
    packed = {
        path: (linear, linear.weight.quant_state)
        for path, linear in model.named_modules()
        if getattr(getattr(linear, "weight", None), "quant_state", None) is not None
    }
    shapes = {
        f"{path}.weight": ([*state.shape], [linear.out_features, linear.in_features])
        for path, (linear, state) in packed.items()
    }
    return {key: (stored, made) for key, (stored, made) in shapes.items() if stored != made}


def _named_in(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ClmoeError(f"{index} cannot be read: {error}", hint=_HINT) from error


def _check_each(folder: Path, files: list[str]) -> None:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ClmoeError(
            f"{folder} is not a complete vision-language model: {len(missing)} of its "
            f"{len(files)} weight files are missing ({_some(missing)})",
            hint=_HINT,
        )
    for file in files:
        if file.endswith(".safetensors"):
            try:
                with safe_open(folder / file, framework="pt"):
                    pass  # opening compares the file's size with its header
            except (SafetensorError, OSError) as error:
                raise ClmoeError(
                    f"{folder / file} is damaged or was cut short: {error}", hint=_HINT
                ) from error


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
