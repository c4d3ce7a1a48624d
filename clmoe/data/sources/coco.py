"""Where a COCO 2014 picture lies below an image folder, whichever way a file names it."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from clmoe.data.images import path_problem

FILE_NAME = re.compile(r"COCO_(train|val)2014_\d{12}\.jpg")
COLLECTION = "COCO2014"


class CocoImages:
    """Finds pictures named `COCO2014/train2014/x.jpg`, `train2014/x.jpg` or `x.jpg`."""

    def __init__(self, root: Path) -> None:
        """Look below `root`."""
        self._root = root
        self._found: dict[str, str] = {}

    def path(self, name: str) -> str:
        """Return the path below the root at which the picture exists.

        Where it exists nowhere, this is the official `train2014/x.jpg` of the file name, or the
        name as given; whether pictures must exist is not decided here.
        """
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def _look(self, name: str) -> str:
        if path_problem(name):
            return name
        candidates = _candidates(name)
        for candidate in candidates:
            if (self._root / candidate).is_file():
                return candidate
        return candidates[0]


def _candidates(name: str) -> list[str]:
    """Return the places to look in, the official one first."""
    file_name = PurePosixPath(name).name
    match = FILE_NAME.fullmatch(file_name)
    if match is None:
        return [name]
    official = f"{match[1]}2014/{file_name}"
    return list(dict.fromkeys([official, name, f"{COLLECTION}/{official}", file_name]))
