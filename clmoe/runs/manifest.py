"""What a committed version says of itself: how it was made, from what, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clmoe.errors import ClmoeError
from clmoe.runs.hashing import ExternalRecord, FileRecord, tree_digest
from clmoe.runs.layout import MANIFEST

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class InputRecord:
    """An output of another node that was read, and its digest then."""

    role: str
    node: str
    output: str
    sha256: str


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """A file or folder of the version, relative to it, with every file it holds."""

    path: str
    size: int
    sha256: str
    files: tuple[FileRecord, ...]

    @classmethod
    def of(cls, path: str, files: tuple[FileRecord, ...]) -> OutputRecord:
        """The record of an output whose files are known."""
        return cls(path, sum(file.size for file in files), tree_digest(files), files)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One committed version.

    Attributes:
        schema: Version of this format.
        stage: The stage, and `stage_version` the version of its code.
        label: The node in the run that made it, e.g. `train/01-recognition`.
        fingerprint: sha256 of everything the result depends on, 64 hexadecimal digits.
        recipe: The part of the recipe that it depends on.
        base: Name and digest of the base model, where it is an input.
        inputs: Outputs of other nodes that it read.
        external: Files outside the store that it read.
        outputs: Its files, by the name under which others read them.
        counts: Numbers of things, such as samples or steps.
        summary: What else is worth keeping.
        warnings: Sentences for people.
        seeds: The seeds among its part of the recipe.
        started: When it was begun, ISO 8601 in UTC; `finished` when it was committed.
        seconds: From the last begin or resume to the commit.
        environment: Versions, platform, device, command line.
        status: Always `complete`: the manifest is written last.
    """

    schema: int
    stage: str
    stage_version: int
    label: str
    fingerprint: str
    recipe: Mapping[str, Any]
    base: Mapping[str, str] | None
    inputs: tuple[InputRecord, ...]
    external: tuple[ExternalRecord, ...]
    outputs: Mapping[str, OutputRecord]
    counts: Mapping[str, Any]
    summary: Mapping[str, Any]
    warnings: tuple[str, ...]
    seeds: Mapping[str, int]
    started: str
    finished: str
    seconds: float
    environment: Mapping[str, Any]
    status: str = "complete"

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON holds it."""
        return asdict(self)


_cache: dict[str, tuple[tuple[int, int, int], Manifest]] = {}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a version.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not a manifest.
        ClmoeError: A newer version of the program wrote it.
    """
    path = folder / MANIFEST
    stat = path.stat()
    stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    known = _cache.get(str(path))
    if known is not None and known[0] == stamp:
        return known[1]
    found = _parse(path)
    _cache[str(path)] = (stamp, found)
    return found


def _parse(path: Path) -> Manifest:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and int(raw["schema"]) > SCHEMA:
            raise ClmoeError(
                f"{path} was written by a newer version of clmoe",
                hint="pip install --upgrade clmoe",
            )
        outputs = {
            name: OutputRecord(
                output["path"],
                output["size"],
                output["sha256"],
                tuple(FileRecord(**file) for file in output["files"]),
            )
            for name, output in raw["outputs"].items()
        }
        return Manifest(
            **{
                **raw,
                "outputs": outputs,
                "inputs": tuple(InputRecord(**item) for item in raw["inputs"]),
                "external": tuple(ExternalRecord(**item) for item in raw["external"]),
                "warnings": tuple(raw["warnings"]),
            }
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a manifest: {error!r}") from error
