"""Makes small files in the layouts of the sources, and prepares them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clmoe.data.prepare import PreparedSummary, prepare_data
from clmoe.recipe.schema import Data

Prepare = Callable[..., PreparedSummary]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "data"


@pytest.fixture
def prepare(tmp_path: Path, out: Path) -> Prepare:
    """Prepare with the given keys of `data`, into `out`."""

    def run(**keys: Any) -> PreparedSummary:
        return prepare_data(Data(**keys), workspace=tmp_path / "out", out=out)

    return run


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Draw a small picture of one colour."""

    def draw(path: Path, color: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (color * 40 % 256, color % 256, color // 256)).save(path)
        return path

    return draw


@pytest.fixture
def dump() -> Callable[[Path, Any], Path]:
    """Write JSON."""

    def write(path: Path, content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def dump_lines() -> Callable[..., Path]:
    """Write JSON Lines; strings go in as they are."""

    def write(path: Path, *records: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
