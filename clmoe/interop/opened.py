"""Any adapter folder in memory: of this project, a bundle, or of the released code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from clmoe.errors import ClmoeError
from clmoe.interop.bundle import SETTINGS, BundleSettings, read_settings
from clmoe.interop.foreign import read_foreign
from clmoe.interop.foreign_files import read_json
from clmoe.interop.projector_checks import check_projector
from clmoe.method.expert_roles import SINGLE_EXPERT
from clmoe.model.adapter_file import read_tensors
from clmoe.model.adapter_info import (
    CONFIG_FILE,
    AdapterInfo,
    a_key,
    b_key,
    read_adapter_info,
    router_key,
)


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter and where it came from.

    Attributes:
        folder: Its folder.
        format: What it is, in words.
        info: Its configuration.
        tensors: Stacked tensors by the names of `clmoe.model.adapter_info`.
        ignored: Files of a foreign folder that were not read.
        notes: Sentences about a foreign folder, or on how a bundle's base was loaded.
        settings: Of a bundle, how it answers; else None.
    """

    folder: Path
    format: str
    info: AdapterInfo
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: BundleSettings | None = None

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Router -> the linears that obey it; all linears as one group where n = 1."""
        if self.info.experts == 1:
            return {SINGLE_EXPERT: tuple(self.info.router_of)}
        found: dict[str, list[str]] = {name: [] for name in self.info.router_names}
        for linear, router in self.info.router_of.items():
            found[router].append(linear)
        return {router: tuple(linears) for router, linears in found.items()}

    @property
    def router_tensors(self) -> tuple[str, ...]:
        """Names of the router tensors; none where n = 1."""
        return tuple(router_key(r) for r in self.info.router_names if self.info.experts > 1)

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the tensors of modules that are trained whole."""
        known = {key for linear in self.info.router_of for key in (a_key(linear), b_key(linear))}
        return tuple(sorted(self.tensors.keys() - known - {*self.router_tensors}))

    def expert(self, linear: str, index: int) -> tuple[Tensor, Tensor]:
        """A_i [r/n, in] and B_i [out, r/n] of one linear."""
        width = self.info.rank // self.info.experts
        part = slice(index * width, (index + 1) * width)
        return self.tensors[a_key(linear)][part], self.tensors[b_key(linear)][:, part]


def open_adapter(folder: Path) -> OpenedAdapter:
    """Read an adapter folder of any known format.

    Raises:
        ClmoeError: There is no adapter, or it is damaged, incomplete or of a newer version.
    """
    if not folder.is_dir():
        raise ClmoeError(f"there is no folder {folder}")
    settings = read_settings(folder) if (folder / SETTINGS).is_file() else None
    path = folder / CONFIG_FILE
    if not path.is_file():
        held = sorted(entry.name for entry in folder.iterdir())
        shown = f"it holds {', '.join(held[:5])}" if held else "it is empty"
        raise ClmoeError(
            f"{folder} holds no adapter: {CONFIG_FILE} is missing ({shown})",
            hint="name the folder that holds adapter_config.json",
        )
    if read_json(path).get("peft_type") != "CLMOE":
        foreign = read_foreign(folder)
        return OpenedAdapter(
            folder=folder,
            format=foreign.format,
            info=foreign.info,
            tensors=foreign.tensors,
            ignored=foreign.ignored,
            notes=foreign.notes,
        )
    info = read_adapter_info(folder)
    tensors = read_tensors(folder, info)
    check_projector(folder, tensors, info)
    return OpenedAdapter(
        folder=folder,
        format="clmoe adapter" if settings is None else "clmoe bundle",
        info=info,
        tensors=tensors,
        notes=(f"the base when it answered: {settings.base_is}",)
        if settings and settings.device
        else (),
        settings=settings,
    )


def check_comparable(adapters: Sequence[OpenedAdapter]) -> None:
    """Refuse adapters of different sizes, linears or base models.

    Where a base lies does not matter, so only the last part of its name is compared. Tensors of a
    projector may be in some of them only.

    Raises:
        ClmoeError: They differ; the first few differences are listed.
    """
    first = adapters[0]
    for other in adapters[1:]:
        found = [
            f"{name} is {one} and {two}"
            for name, one, two in (
                ("the number of experts", first.info.experts, other.info.experts),
                ("the total rank", first.info.rank, other.info.rank),
                ("alpha", first.info.alpha, other.info.alpha),
                ("the base", _last(first.info.base), _last(other.info.base)),
            )
            if one != two and None not in (one, two)
        ]
        optional = {*first.extras, *other.extras}
        for name in sorted((first.tensors.keys() ^ other.tensors.keys()) - optional):
            owner = first if name in first.tensors else other
            found.append(f"{name} is only in {owner.folder}")
        if not found and first.groups != other.groups:
            found.append("their routers gate different linears")
        for name in sorted(first.tensors.keys() & other.tensors.keys()):
            one, two = (list(a.tensors[name].shape) for a in (first, other))
            if one != two:
                found.append(f"{name} is {one} and {two}")
        if found:
            more = f"; and {len(found) - 3} more differences" if len(found) > 3 else ""
            raise ClmoeError(
                f"{first.folder} and {other.folder} cannot be compared: {'; '.join(found[:3])}"
                f"{more}",
                hint="they are adapters of different bases or settings",
            )


def _last(name: str | None) -> str | None:
    return None if name is None else name.rstrip("/").rpartition("/")[2]
