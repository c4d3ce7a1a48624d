"""Bringing an adapter of the released code in."""

from __future__ import annotations

import shlex
from pathlib import Path

from clmoe.errors import ClmoeError
from clmoe.reporting.tables import DASH, Table
from clmoe.stages.audit import targets_text
from clmoe.stages.result import Result


def import_adapter(folder: Path, *, out: Path, base: str | None) -> Result:
    """Read an adapter of the released code and write it as one of this project.

    Args:
        folder: The adapter's folder.
        out: Where to; it must not exist.
        base: Name of the base model; None: as the folder says.

    Raises:
        UsageError: Nobody says what the base model is.
        ClmoeError: The folder is no adapter, inconsistent, damaged or of another base.
    """
    from clmoe.interop.foreign import read_foreign
    from clmoe.interop.import_folder import write_imported

    if not folder.is_dir():
        raise ClmoeError(f"there is no folder {folder}")
    if out.exists():
        raise ClmoeError(f"{out} exists", hint="name another folder, or remove it")
    found = read_foreign(folder, base=base)
    write_imported(found, out)
    info = found.info
    rows = [
        ["format", found.format],
        ["base model", f"{info.base} ({'--base' if base else 'as the folder says'})"],
        ["experts n", str(info.experts)],
        ["total rank r", str(info.rank)],
        ["scaling alpha / r", f"{info.alpha:g} / {info.rank} = {info.alpha / info.rank:g}"],
        ["adapted linears", f"{len(info.router_of)} ({targets_text(info.targets)})"],
        ["routers", info.routers],
        ["trained whole", ", ".join(info.modules_to_save) or DASH],
        ["parameters", f"{sum(t.numel() for t in found.tensors.values()):,}"],
        ["equal second names dropped", str(found.aliases)],
        ["ignored", ", ".join(found.ignored) or DASH],
    ]
    return Result(
        command="import",
        tables=(Table(f"{folder} -> {out}", ["", ""], rows),),
        data={
            "format": found.format,
            "folder": out,
            "base": info.base,
            "experts": info.experts,
            "rank": info.rank,
            "alpha": info.alpha,
            "targets": info.targets,
            "routers": info.routers,
            "linears": list(info.router_of),
            "modules_to_save": list(info.modules_to_save),
            "aliases": found.aliases,
            "ignored": list(found.ignored),
            "notes": list(found.notes),
        },
        notes=(
            *found.notes,
            f"after `import clmoe`, PeftModel.from_pretrained(base, {str(out)!r}) loads it",
        ),
        next_command=f"clmoe audit {shlex.quote(str(out))}",
    )
