"""A new folder appears whole or not at all: it is written beside its place and renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clmoe.errors import ClmoeError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which takes its name when the block ends well.

    Raises:
        ClmoeError: There is something of that name, before anything is written; or the disk
            refuses, and then nothing is left.
    """
    if folder.exists():
        raise ClmoeError(f"{folder} exists", hint="name another folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    except OSError as error:
        raise ClmoeError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
