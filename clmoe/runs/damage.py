"""Whether the files of a committed version are what its manifest says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from clmoe.runs.hashing import FileRecord, file_digest, files_below
from clmoe.runs.manifest import Manifest, OutputRecord


def find_damage(folder: Path, manifest: Manifest, *, rehash: bool = False) -> tuple[str, ...]:
    """What is wrong with a version, one line a file; nothing where it is whole.

    Args:
        folder: The version.
        manifest: Its manifest.
        rehash: Compare sha256 and look for files that do not belong, not only sizes.
    """
    found: list[str] = []
    for output in manifest.outputs.values():
        root = os.path.join(folder, output.path)
        for record in output.files:
            path = root if record.path == "." else f"{root}/{record.path}"
            wrong = _wrong(path, record, rehash=rehash)
            if wrong:
                found.append(f"{os.path.basename(path)} {wrong}")
        if rehash and os.path.isdir(root):
            found += _extra(Path(root), output)
    return tuple(dict.fromkeys(found))


def _wrong(path: str, record: FileRecord, *, rehash: bool) -> str | None:
    try:
        seen = os.lstat(path)  # no Path objects: there may be tens of thousands of images
    except OSError:
        return "is missing"
    if not stat.S_ISREG(seen.st_mode):
        return "is not a file"
    if seen.st_size < record.size:
        return f"is {record.size - seen.st_size} bytes short"
    if seen.st_size > record.size:
        return f"is {seen.st_size - record.size} bytes too long"
    if rehash and file_digest(path) != record.sha256:
        return "has changed since it was committed (another sha256)"
    return None


def _extra(root: Path, output: OutputRecord) -> list[str]:
    known = {record.path for record in output.files}
    try:
        names = set(files_below(root))
    except ValueError as error:
        return [str(error)]
    return [f"{name} was added after the commit" for name in sorted(names - known)]
