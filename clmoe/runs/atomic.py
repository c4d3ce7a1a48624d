"""Writing so that a kill at any moment leaves either the old or the new, never a mixture.

`step(name)` is called between any two changes on disk; tests replace it to stop there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clmoe.errors import ClmoeError

_FSYNC_EACH = 256


def _no_step(name: str) -> None:
    del name


step: Callable[[str], None] = _no_step


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once, its bytes on disk before its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")  # HEAD is written by any run
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    step(f"{path.name} written")
    temporary.replace(path)
    sync_folder(path.parent)
    step(f"{path.name} replaced")


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file at once."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Adds a line; half a line that a kill left behind is removed first."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(paths: Iterable[str]) -> None:
    """Makes the bytes of files durable: one by one, or the whole disk where there are many."""
    chosen = list(paths)
    if len(chosen) > _FSYNC_EACH:
        os.sync()
        return
    for path in chosen:
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def move_folder(source: Path, *, to: Path) -> None:
    """Renames a folder to a place that is free, or whose damaged content is put aside."""
    if to.exists():
        aside = to.with_name(f".damaged-{to.name}")
        shutil.rmtree(aside, ignore_errors=True)
        to.rename(aside)
        step("damaged version put aside")
    source.rename(to)
    sync_folder(to.parent)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns a failed write into a message that says that nothing was lost.

    Raises:
        ClmoeError: The disk is full, or a file could not be written.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else str(error)
        raise ClmoeError(
            f"{what} could not be committed: {why}; the earlier version is still current",
            hint="free some space (clmoe clean), then run the same command again" if full else None,
        ) from error
