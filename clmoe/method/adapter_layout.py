"""What the tensors of an adapter folder are: read from names and shapes, without a model.

A tensor is a factor A [r, in] or B [out, r] of one adapted linear, a router [n, in], or an extra
(a trained projector, for instance). Expert i is rows i*r/n .. (i+1)*r/n of A, and the same
columns of B. `adapter_config.json` says which router gates which linear.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from clmoe.errors import ClmoeError
from clmoe.method.expert_roles import SINGLE_EXPERT
from clmoe.method.tensor_file import DTYPES
from clmoe.model.adapter_info import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterInfo,
    a_key,
    b_key,
    expected_shapes,
    read_adapter_info,
    router_key,
)

# Where, by what or from which first weights an adapter was made; not what it is.
_FREE_KEYS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_seed",
    "peft_version",
    "revision",
    "router_std",
    "task_type",
}


@dataclass(frozen=True)
class Linear:
    """One adapted linear: the tensor names of its factors, and the router it obeys."""

    a: str
    b: str
    router: str


@dataclass(frozen=True)
class AdapterLayout:
    """The tensors of one adapter, by what they are.

    Attributes:
        folder: Where the adapter lies.
        experts: n.
        linears: The adapted linears, in natural order of their paths.
        routers: Names of the router tensors; none where n = 1.
        extras: Names of the tensors of modules that are trained whole.
        shapes: Of every tensor.
        dtypes: Of every tensor, as safetensors spells them ("F32", "BF16", ...).
        config: `adapter_config.json`.
    """

    folder: Path
    experts: int
    linears: tuple[Linear, ...]
    routers: tuple[str, ...]
    extras: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    config: dict[str, Any]

    @property
    def weights_file(self) -> Path:
        """The file of tensors."""
        return self.folder / WEIGHTS_FILE

    @property
    def expert_routers(self) -> tuple[str, ...]:
        """The routers that the linears obey, each once; `SINGLE_EXPERT` alone where n = 1."""
        return tuple(dict.fromkeys(linear.router for linear in self.linears))


def read_layout(folder: Path) -> AdapterLayout:
    """Reads names and shapes of an adapter folder; every tensor must be accounted for.

    Raises:
        ClmoeError: A file is missing or damaged; a tensor is missing, unknown, or of a shape or
            dtype that the configuration does not allow. All problems are listed.
    """
    info = read_adapter_info(folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(view.get_shape()) for name, view in views.items()}
            dtypes = {name: str(view.get_dtype()) for name, view in views.items()}
    except (OSError, SafetensorError) as error:
        raise ClmoeError(
            f"{folder / WEIGHTS_FILE} cannot be read: {error}", hint="make the adapter again"
        ) from error
    expected = expected_shapes(info)
    problems = _problems(info, expected=expected, shapes=shapes, dtypes=dtypes)
    if problems:
        raise ClmoeError(
            f"{folder} is not a complete adapter: {'; '.join(problems)}",
            hint="the file was written in part, edited, or belongs to another configuration",
        )
    return AdapterLayout(
        folder=folder,
        experts=info.experts,
        linears=tuple(
            Linear(a_key(path), b_key(path), router if info.experts > 1 else SINGLE_EXPERT)
            for path, router in info.router_of.items()
        ),
        routers=tuple(router_key(name) for name in info.router_names if info.experts > 1),
        extras=tuple(name for name in shapes if name not in expected),
        shapes=shapes,
        dtypes=dtypes,
        config=config,
    )


def differences(first: AdapterLayout, second: AdapterLayout) -> list[str]:
    """Everything that keeps two adapters from being merged, one line each."""
    found: list[str] = []
    for key in sorted((first.config.keys() | second.config.keys()) - _FREE_KEYS):
        one, two = (_plain(layout.config.get(key)) for layout in (first, second))
        if one != two:
            found.append(f"{CONFIG_FILE}: {key} is {one!r} and {two!r}")
    for name in sorted(first.shapes.keys() | second.shapes.keys()):
        if name not in second.shapes or name not in first.shapes:
            owner = first if name in first.shapes else second
            found.append(f"{name} is only in {owner.folder}")
        elif first.shapes[name] != second.shapes[name]:
            found.append(f"{name} is {list(first.shapes[name])} and {list(second.shapes[name])}")
        elif first.dtypes[name] != second.dtypes[name]:
            found.append(f"{name} is {first.dtypes[name]} and {second.dtypes[name]}")
    return found


def _problems(
    info: AdapterInfo,
    *,
    expected: Mapping[str, tuple[int | None, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
) -> list[str]:
    found: list[str] = []
    if not info.router_of:
        found.append("it adapts no linear")
    for name, wanted in expected.items():
        shape = shapes.get(name)
        if shape is None:
            found.append(f"{name} is missing")
        elif len(shape) != 2 or any(w not in (None, s) for w, s in zip(wanted, shape, strict=True)):
            shown = [size or "any" for size in wanted]
            found.append(f"{name} is {list(shape)}, expected {shown}")
    for name, dtype in dtypes.items():
        if dtype not in DTYPES.values():
            found.append(f"{name} is {dtype}, expected one of {', '.join(DTYPES.values())}")
        if name not in expected and not any(
            f".{module}." in name for module in info.modules_to_save
        ):
            found.append(f"{name} is unknown")
    return found


def _plain(value: Any) -> Any:
    """PEFT stores some sets, so the order of a list of names says nothing."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value)
    return value
