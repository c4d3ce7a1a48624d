"""sha256 of files and folders, remembered by size and time of change."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clmoe.recipe.fingerprint import fingerprint

_SETTLED = 2.0


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of an output: path relative to the output (`.` for the output itself), bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExternalRecord:
    """A file outside the store that a stage read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


def file_digest(path: Path | str) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(path: Path) -> dict[str, str]:
    """Relative path -> path of all files of a folder, sorted; a file alone is `.`.

    Plain strings: a folder of images may hold tens of thousands.

    Raises:
        ValueError: Something in it is neither a file nor a folder (a link, a device).
    """
    if path.is_file() and not path.is_symlink():
        return {".": str(path)}
    root = str(path)
    found = {full[len(root) + 1 :].replace(os.sep, "/"): full for full in _walk(root)}
    return dict(sorted(found.items()))


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry.path
            else:
                raise ValueError(f"{entry.path} is neither a file nor a folder")


def record_files(path: Path) -> tuple[FileRecord, ...]:
    """Path, size and digest of every file of an output."""
    return tuple(
        FileRecord(relative, os.stat(full).st_size, file_digest(full))
        for relative, full in files_below(path).items()
    )


def tree_digest(files: Iterable[FileRecord]) -> str:
    """One sha256 of an output: its file's own, or that of the sorted paths and digests."""
    records = list(files)
    if len(records) == 1 and records[0].path == ".":
        return records[0].sha256
    return fingerprint([[record.path, record.sha256] for record in records])


@dataclass(slots=True)
class DigestCache:
    """Digests of files outside the store, kept in one JSON file beside it.

    A digest is remembered once its file has been unchanged for two seconds, so that a second
    write of the same size within the clock's resolution cannot be missed.
    """

    path: Path
    _entries: dict[str, tuple[int, int, str]] | None = field(default=None, init=False)

    def digest(self, file: Path) -> str:
        """The sha256 of a file, computed again only where its size or time changed."""
        entries = self._load()
        stat = file.stat()
        key = str(file.resolve())
        known = entries.get(key)
        if known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known[2]
        found = file_digest(file)
        if time.time() - stat.st_mtime > _SETTLED:
            entries[key] = (stat.st_size, stat.st_mtime_ns, found)
            self._save(entries)
        return found

    def external(self, file: Path) -> ExternalRecord:
        """What a manifest says about a file outside the store."""
        stat = file.stat()
        return ExternalRecord(str(file), stat.st_size, stat.st_mtime_ns, self.digest(file))

    def _load(self) -> dict[str, tuple[int, int, str]]:
        if self._entries is None:
            try:
                stored = json.loads(self.path.read_text(encoding="utf-8"))
                self._entries = {key: (int(a), int(b), str(c)) for key, (a, b, c) in stored.items()}
            except (OSError, ValueError, AttributeError, TypeError):
                self._entries = {}  # a cache: what cannot be read is computed again
        return self._entries

    def _save(self, entries: dict[str, tuple[int, int, str]]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entries), encoding="utf-8")
            temporary.replace(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)  # a read-only store is no reason to fail
