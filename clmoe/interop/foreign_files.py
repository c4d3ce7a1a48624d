"""The files of a foreign adapter folder, read without running anything that is in them.

A `.bin` file is a pickle, which can run code when it is opened: `torch.load(weights_only=True)`
builds tensors and plain containers only, and refuses the rest.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.method.tensor_file import DTYPES
from clmoe.model.adapter_info import CONFIG_FILE, WEIGHTS_FILE

PICKLED_WEIGHTS = "adapter_model.bin"
PROJECTOR_FILE = "non_lora_trainables.bin"
BASE_CONFIG = "config.json"


@dataclass(frozen=True)
class ForeignFiles:
    """What a folder holds.

    Attributes:
        config: `adapter_config.json`.
        base_config: `config.json`, or nothing where it is absent.
        tensors: Of each file that was read, its tensors by the names in it.
        ignored: What else lies there, by name, folders with a slash.
    """

    config: dict[str, Any]
    base_config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    ignored: tuple[str, ...]


def read_foreign_files(folder: Path) -> ForeignFiles:
    """Read a folder of the released code.

    Raises:
        ClmoeError: There are no weights or two files of them, a file is damaged, or a pickle
            holds more than tensors.
    """
    config = read_json(folder / CONFIG_FILE)
    weights = [name for name in (WEIGHTS_FILE, PICKLED_WEIGHTS) if (folder / name).is_file()]
    if not weights:
        raise ClmoeError(f"{folder} holds no weights: no {PICKLED_WEIGHTS} and no {WEIGHTS_FILE}")
    if len(weights) > 1:
        raise ClmoeError(
            f"{folder} holds both {WEIGHTS_FILE} and {PICKLED_WEIGHTS}, which may differ",
            hint="move away the one that is not meant",
        )
    read = [*weights, *(n for n in (PROJECTOR_FILE,) if (folder / n).is_file())]
    has_base = (folder / BASE_CONFIG).is_file()
    used = {CONFIG_FILE, BASE_CONFIG, *read}
    return ForeignFiles(
        config=config,
        base_config=read_json(folder / BASE_CONFIG) if has_base else {},
        tensors={name: read_tensor_file(folder / name) for name in read},
        ignored=tuple(
            path.name + "/" * path.is_dir()
            for path in sorted(folder.iterdir())
            if path.name not in used
        ),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ClmoeError: The file is missing, no JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClmoeError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ClmoeError(f"{path} holds no JSON object")
    return found


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors, safetensors or a pickle of nothing but tensors.

    Raises:
        ClmoeError: It is damaged, holds something else, or a value is not a finite number.
    """
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a reader trips over in bytes that anybody wrote
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClmoeError(
            f"{path} is damaged: {first}", hint="it was cut short or overwritten; fetch it again"
        ) from error
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise ClmoeError(
            f"{path} holds a {type(found).__name__}, not tensors by name",
            hint="it is not a file of an adapter's weights",
        )
    for key, tensor in found.items():
        if tensor.dtype not in DTYPES:
            raise ClmoeError(f"{path}: {key} is of {tensor.dtype}, which no adapter is stored in")
        if not bool(tensor.isfinite().all()):
            raise ClmoeError(f"{path}: {key} has a value that is not a finite number")
    return dict(found)


def _load_pickle(path: Path) -> Any:
    with warnings.catch_warnings():
        # A file of another pickle protocol is refused or read, never guessed at.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(path: Path, error: Exception) -> ClmoeError:
    asked = re.search(r"GLOBAL (\S+)|builtins\.\w+", str(error))
    what = f" (it asks for {asked[1] or asked[0]})" if asked else ""
    return ClmoeError(
        f"{path} is refused: as a pickle it holds something other than tensors{what}, and opening "
        "it could run code; or it is damaged",
        hint="ask its author for a safetensors file",
    )
