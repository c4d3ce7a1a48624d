"""Every path under a runs directory, and the relative links that people follow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clmoe.errors import UsageError
from clmoe.recipe.fingerprint import short

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of a runs directory: a store that runs share, and a folder for each run."""

    root: Path

    @property
    def head(self) -> Path:
        """The file with the name of the current run."""
        return self.root / "HEAD"

    @property
    def store(self) -> Path:
        """All committed versions, whoever made them."""
        return self.root / ".store"

    @property
    def digests(self) -> Path:
        """The cache of digests of files outside the store."""
        return self.store / "digests.json"

    def version(self, stage: str, fingerprint: str) -> Path:
        """The folder of a committed version."""
        return self.store / stage / short(fingerprint)

    def partial(self, stage: str, fingerprint: str) -> Path:
        """The folder of a version being made."""
        return self.store / stage / f".partial-{short(fingerprint)}"

    @property
    def locks(self) -> Path:
        """The folder of the locks of versions being made."""
        return self.store / ".locks"

    def partial_lock(self, stage: str, fingerprint: str) -> Path:
        """The lock of a version being made; `clean` removes it, nothing else does."""
        return self.locks / f"{stage}-{short(fingerprint)}.lock"

    def stages(self) -> list[Path]:
        """The folders of versions, one a stage."""
        return sorted(path for path in self.store.glob("[!.]*") if path.is_dir())

    def run(self, name: str) -> Path:
        """The folder of a run.

        Raises:
            UsageError: The name cannot be that of a run.
        """
        if not _NAME.fullmatch(name) or name == "HEAD":
            raise UsageError(
                f"{name!r} cannot be the name of a run: letters, digits, '.', '_' and '-' only"
            )
        return self.root / name

    def run_names(self) -> list[str]:
        """The names of all runs, sorted."""
        return sorted(path.parent.name for path in self.root.glob("[!.]*/run.json"))


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of one run."""

    folder: Path

    @property
    def about(self) -> Path:
        """run.json: name, schema version, time made."""
        return self.folder / "run.json"

    @property
    def recipe(self) -> Path:
        """The resolved recipe, every key written out."""
        return self.folder / "recipe.yaml"

    @property
    def source(self) -> Path:
        """The recipe as it was given."""
        return self.folder / "recipe.source.yaml"

    @property
    def overrides(self) -> Path:
        """KEY=VALUE, one a line."""
        return self.folder / "overrides.txt"

    @property
    def log(self) -> Path:
        """Events, one JSON object a line."""
        return self.folder / "log.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the one writer."""
        return self.folder / ".lock"

    @property
    def current(self) -> Path:
        """Label of a node -> fingerprint of its current version."""
        return self.folder / "current.json"

    @property
    def history(self) -> Path:
        """Every change of current.json, numbered."""
        return self.folder / "history.jsonl"


def update_links(run: Path, *, store: Path, current: Mapping[str, str]) -> None:
    """Makes the links `train/01-recognition`, ... of a run folder show its current versions.

    Args:
        run: The folder of the run.
        store: The store, on the same disk.
        current: Label of each node -> fingerprint.
    """
    for label, fingerprint in current.items():
        link = run / label
        stage = label.split("/", 1)[0]
        target = os.path.relpath(store / stage / short(fingerprint), link.parent)
        if link.is_symlink() and os.readlink(link) == target:
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target, target_is_directory=True)
        fresh.replace(link)


def tree_bytes(paths: Iterable[Path]) -> int:
    """The size of all files below the paths, in bytes."""
    total = 0
    for path in paths:
        for folder, _, names in os.walk(path):
            total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return total
