"""What a base model is, for a fingerprint: the sha256 of its files, or its commit on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from clmoe.events import Note, emit
from clmoe.recipe.fingerprint import fingerprint
from clmoe.recipe.schema import Base
from clmoe.runs.hashing import DigestCache

TINY_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "tiny_llava"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGE = 2**30


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """A base model's name in the recipe, and a digest that changes when the model does."""

    name: str
    digest: str


def base_identity(base: Base, *, cache: DigestCache) -> BaseIdentity:
    """Identifies a base without loading it.

    The built-in base and a local folder: sha256 over their files (hidden ones left out). A model
    of the hub: its commit in the local cache; `unresolved` while it is not there, so a first
    download belongs before the first stage that reads it.
    """
    folder = TINY_FOLDER if base.model == "tiny" else Path(base.model).expanduser()
    if base.model == "tiny" or folder.is_dir():
        return BaseIdentity(base.model, f"sha256:{_folder_digest(folder, cache=cache)}")
    commit = hub_commit(base.model, revision=base.revision or "main")
    return BaseIdentity(base.model, f"hub:{base.model}@{commit or 'unresolved'}")


def hub_commit(model: str, *, revision: str) -> str | None:
    """The commit of a revision in the local cache of the hub, or None where it is not there."""
    if _COMMIT.fullmatch(revision):
        return revision
    reference = hub_cache() / f"models--{model.replace('/', '--')}" / "refs" / revision
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def hub_cache() -> Path:
    """The folder in which the hub's client keeps models."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser() / "hub"


def _folder_digest(folder: Path, *, cache: DigestCache) -> str:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    if not cache.path.is_file() and sum(path.stat().st_size for path in files) > _LARGE:
        emit(Note(f"computing the sha256 of {folder}, once"))
    return fingerprint([[path.relative_to(folder).as_posix(), cache.digest(path)]
                        for path in files])  # fmt: skip
