"""What the store holds that no run uses, and removing it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from clmoe.errors import ClmoeError
from clmoe.recipe.fingerprint import short
from clmoe.runs.layout import Layout, RunFiles, tree_bytes
from clmoe.runs.lock import hold
from clmoe.runs.pointers import read_current
from clmoe.runs.run import Run


@dataclass(frozen=True, slots=True)
class Unreferenced:
    """A folder of the store that no run uses, and the bytes it takes."""

    path: Path
    bytes: int


def unreferenced(runs_dir: Path) -> list[Unreferenced]:
    """Versions that no run points at, and unfinished ones that no run would go on with.

    Raises:
        ClmoeError: A run's files cannot be read, so that nobody knows what it uses.
    """
    layout = Layout(runs_dir.absolute())
    used: set[Path] = set()
    for name in layout.run_names():
        current = read_current(RunFiles(layout.run(name)))
        used |= {
            layout.store / label.split("/", 1)[0] / short(fingerprint)
            for label, fingerprint in current.items()
        }
        used |= _unfinished(Run.open(layout.root, name))
    found = []
    for stage in layout.stages():
        for path in sorted(stage.iterdir()):
            if path.is_dir() and path not in used:
                found.append(Unreferenced(path, tree_bytes([path])))
    return found


def remove(runs_dir: Path, *, chosen: Sequence[Unreferenced]) -> int:
    """Removes what `unreferenced` listed and is still unused; returns the bytes freed.

    Raises:
        ClmoeError: A run is being written, so that what it uses may be about to change.
    """
    layout = Layout(runs_dir.absolute())
    freed = 0
    with ExitStack() as stack:
        for name in layout.run_names():
            stack.enter_context(hold(RunFiles(layout.run(name)).lock, what=f"the run {name}"))
        still = {item.path for item in unreferenced(runs_dir)}
        for item in chosen:
            if item.path not in still:
                continue
            try:
                shutil.rmtree(item.path)
            except OSError as error:
                raise ClmoeError(f"{item.path} could not be removed: {error}") from error
            freed += item.bytes
        for lock in layout.locks.glob("*"):
            lock.unlink()  # every run is held here, so no stage is at work
    return freed


def _unfinished(run: Run) -> set[Path]:
    """The unfinished versions that a run would go on with."""
    current = read_current(run.files)
    states = run.states() if "prepare" in current else []
    return {
        run.layout.partial(state.node.stage, state.fingerprint)
        for state in states
        if state.fingerprint is not None
    }
