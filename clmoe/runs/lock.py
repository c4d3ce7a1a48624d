"""One writer for each run; a second is told who the first is."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clmoe.errors import BusyError


@contextmanager
def hold(path: Path, *, what: str) -> Iterator[None]:
    """Holds the lock at `path` inside the `with` block; one process may nest it.

    Args:
        path: The lock file; who holds it is written beside it, to `<path>.json`.
        what: What is locked, for the message.

    Raises:
        BusyError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError(
            f"{what} is being written by {holder(path)}",
            hint="wait for it to end, then run the same command again",
        ) from error
    note = path.with_name(f"{path.name}.json")
    try:
        if lock.lock_counter == 1:
            note.write_text(json.dumps(_self()), encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            note.unlink(missing_ok=True)
        lock.release()


def holder(path: Path) -> str:
    """Who holds the lock, in words."""
    try:
        who = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} ({who['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _self() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": platform.node(), "command": shlex.join(sys.argv)}
