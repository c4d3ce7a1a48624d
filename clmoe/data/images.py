"""Pictures on disk: paths that stay inside their root, and files that really decode."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clmoe.errors import DataError

ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")
"""How an absolute path begins, on Windows too: the same data are good or bad on every system."""


def path_problem(relative: str) -> str | None:
    """Say why `relative` may not be used as a path below an image root, or return None.

    Looks at the text only; `find_image` also follows symbolic links.
    """
    if not relative or relative != relative.strip() or "\0" in relative:
        return "is not a path"
    if ABSOLUTE.match(relative):
        return "is absolute; it must be relative to the image folder"
    if ".." in relative.replace("\\", "/").split("/"):
        return "leaves the image folder by '..'"
    return None


def find_image(root: Path, relative: str) -> Path:
    """Return the real path of an image below `root`.

    Raises:
        DataError: The path is absolute, contains `..`, leads outside by a symbolic link, or there
            is no such file.
    """
    what = path_problem(relative)
    if what is None:
        real_root = root.resolve()
        path = (real_root / relative).resolve()
        if not path.is_relative_to(real_root):
            what = f"leads outside {root} by a symbolic link"
        elif not path.exists():
            what = f"is missing from {root}"
        elif not path.is_file():
            what = "is not a file"
        else:
            return path
    raise DataError(f"image {relative} {what}")


def load_rgb(root: Path, relative: str) -> Image.Image:
    """Decode an image below `root` as RGB.

    Raises:
        DataError: As for `find_image`, or the file is no whole image.
    """
    path = find_image(root, relative)
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise DataError(f"image {relative} cannot be decoded ({_reason(error)})") from error


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """What opening an image showed: what is wrong, or else a hash of its pixels."""

    problem: str | None = None
    digest: bytes = b""


def check_image(root: Path, relative: str) -> ImageCheck:
    """Open and decode a whole image below `root`; what is wrong is returned, not raised."""
    try:
        image = load_rgb(root, relative)
    except DataError as error:
        return ImageCheck(problem=error.message)
    pixels = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    pixels.update(image.tobytes())
    return ImageCheck(digest=pixels.digest())


def _reason(error: Exception) -> str:
    text = str(error)
    return "not an image" if text.startswith("cannot identify image file") else text
