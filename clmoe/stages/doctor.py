"""`clmoe doctor`: what this machine has, and whether a recipe fits into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmoe.recipe.load import load_recipe
from clmoe.runs.base_identity import hub_cache
from clmoe.stages.result import Result, Table

if TYPE_CHECKING:
    import torch

    from clmoe.recipe.schema import Recipe
    from clmoe.stages.fit import Fit, Remedy, Study
    from clmoe.stages.machine import Machine


def doctor(runs_dir: Path, *, recipe: str | None, overrides: Sequence[str]) -> Result:
    """Report versions, devices and disk; with a recipe (or overrides) also whether it fits.

    A recipe that does not fit is no failure of this command: the verdict is in the result.

    Args:
        runs_dir: The folder of all runs.
        recipe: A shipped recipe's name or a file; None: only the machine, or with overrides the
            default recipe.
        overrides: KEY=VALUE.

    Raises:
        ClmoeError: The base's configuration is not there and cannot be fetched.
    """
    import torch

    from clmoe.stages.machine import look_at_machine

    resolved = load_recipe(recipe, overrides=overrides).recipe if recipe or overrides else None
    machine = look_at_machine({"runs": runs_dir, "models of the hub": hub_cache()})
    wanted = resolved.runtime.device if resolved else "auto"
    device = torch.device(wanted if wanted != "auto" else "cuda" if machine.gpus else "cpu")
    tables, data, notes = _about_machine(machine, device)
    if resolved is None:
        notes += _kernels(device)
        following = "clmoe doctor shapes"
    else:
        from clmoe.stages.fit import study

        found = study(
            resolved, device=device, room=machine.room(device), sample=_longest(runs_dir, resolved)
        )
        disk = machine.disks["runs"][1]
        more, figures, said = _about_fit(found, device=device, disk=disk)
        tables, data, notes = tables + more, data | {"recipe": figures}, notes + said
        following = f"clmoe run {recipe or resolved.name} --dry-run"
    return Result(
        command="doctor",
        tables=tuple(tables),
        data=data,
        notes=tuple(notes),
        next_command=following,
    )


def size_text(number: int) -> str:
    """Bytes as MiB or GiB."""
    mebibytes = number / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def _about_machine(
    machine: Machine, device: torch.device
) -> tuple[list[Table], dict[str, Any], list[str]]:
    versions = [[name, version or "not installed"] for name, version in machine.versions.items()]
    devices = [["cpu", f"{machine.cores} cores", size_text(machine.memory),
                size_text(machine.available), "yes, slowly"]]  # fmt: skip
    devices += [
        [f"cuda:{index}", gpu.name, size_text(gpu.total), size_text(gpu.free),
         "yes" if gpu.bfloat16 else "no"]
        for index, gpu in enumerate(machine.gpus)
    ]  # fmt: skip
    disks = [[what, str(folder), size_text(free)] for what, (folder, free) in machine.disks.items()]
    pictures = "can" if machine.torchvision else "cannot"
    tables = [
        Table("versions", ["package", "version"], versions),
        Table("devices", ["device", "what", "memory", "free", "bfloat16"], devices),
        Table("disk", ["for", "folder", "free"], disks),
    ]
    data = {
        "versions": machine.versions,
        "cpu": {"cores": machine.cores, "memory": machine.memory, "free": machine.available},
        "gpus": [vars(gpu) for gpu in machine.gpus],
        "disks": {what: {"folder": f, "free": free} for what, (f, free) in machine.disks.items()},
        "device": str(device),
        "torchvision": machine.torchvision,
    }
    return tables, data, [f"picture processors {pictures} use torchvision"]


def _kernels(device: torch.device) -> list[str]:
    from clmoe.model.backbone import choose_kernels
    from clmoe.recipe.schema import Base

    _, _, why_dtype, why_attention = choose_kernels(Base(), device=device)
    return [f"dtype {why_dtype}", f"attention {why_attention}"]


def _about_fit(
    found: Study, *, device: torch.device, disk: int
) -> tuple[list[Table], dict[str, Any], list[str]]:
    from clmoe.training.memory_estimate import checkpoint_bytes

    shape, load = found.shape, found.loads["training"]
    saved = checkpoint_bytes(shape, load)
    tables, notes = [], list(found.why)
    for fit in found.fits:
        told = found.loads[fit.what]
        title = f"{fit.what}, {told.batch} samples of {told.tokens} tokens at a time: {fit.verdict}"
        rows = [[part, size_text(size)] for part, size in fit.estimate.parts.items()]
        rows += [["needed in all", size_text(fit.estimate.total)],
                 [f"free on {device}", size_text(fit.room)]]  # fmt: skip
        tables.append(Table(title, ["at its largest moment", "memory"], rows))
        notes.append(f"{fit.what} needs most at {fit.estimate.moment}")
        notes += _advice(fit)
    notes += _advice_for_both(found)
    notes.append(f"a training checkpoint takes {size_text(saved)} on disk")
    if saved > disk:
        notes.append(f"it does not fit: {size_text(disk)} are free in the folder of runs")
    if load.device == "cpu":
        notes.append(
            "a CPU process keeps memory that it has freed: it can hold up to twice the estimate; "
            "MALLOC_MMAP_THRESHOLD_=65536 in the environment gives it back, at some cost in speed"
        )
    figures = {
        "parameters": shape.parameters,
        "trainable": shape.trainable,
        "checkpoint": saved,
        "assumptions": found.why,
        **{
            fit.what: {
                "verdict": fit.verdict,
                "fits": fit.fits,
                "needed": fit.estimate.total,
                "free": fit.room,
                "moment": fit.estimate.moment,
                "parts": fit.estimate.parts,
                "batch": found.loads[fit.what].batch,
                "tokens": found.loads[fit.what].tokens,
                "to_try": [_as_data(remedy) for remedy in fit.remedies],
            }
            for fit in found.fits
        },
        "to_try_for_both": found.together and _as_data(found.together),
    }
    return tables, figures, notes


def _advice(fit: Fit) -> list[str]:
    if fit.fits:
        return []
    if not fit.remedies:
        return [
            f"{fit.what}: no dtype, quantization, batch or checkpointing that runs here makes it "
            "fit; use a smaller base or another machine"
        ]
    return [f"{fit.what} fits with: {_told(remedy, fit.room)}" for remedy in fit.remedies]


def _advice_for_both(found: Study) -> list[str]:
    """What makes both fit, where the advice for one of them does not say it already."""
    failing = [fit for fit in found.fits if not fit.fits]
    if not all(fit.remedies for fit in failing):
        return []
    if found.together is None:
        return ["no one set of these makes training and evaluation fit both"] * bool(failing)
    if [found.together.overrides] == [fit.remedies[0].overrides for fit in failing]:
        return []
    return [f"training and evaluation fit with: {_told(found.together, found.fits[0].room)}"]


def _as_data(remedy: Remedy) -> dict[str, Any]:
    return {"overrides": remedy.overrides, "needed": remedy.total}


def _told(remedy: Remedy, room: int) -> str:
    from clmoe.stages.fit import is_close

    close = ", which is free by less than the estimate's error" * is_close(remedy.total, room=room)
    return f"{' '.join(remedy.overrides)} (needs {size_text(remedy.total)}{close})"


def _longest(runs_dir: Path, recipe: Recipe) -> Any:
    """The longest prepared sample of the run named like the recipe; None where there is none."""
    from clmoe.runs.layout import Layout
    from clmoe.runs.plan import Node
    from clmoe.runs.run import Run

    if recipe.name not in Layout(runs_dir.absolute()).run_names():
        return None
    opened = Run.open(runs_dir, recipe.name)
    same = opened.recipe.data == recipe.data and opened.recipe.base.model == recipe.base.model
    if not same or opened.state(Node("prepare")).status != "fresh":
        return None
    from clmoe.stages.prepared_lengths import longest_sample

    return longest_sample(opened)
