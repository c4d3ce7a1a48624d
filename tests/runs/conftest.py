"""A small built-in base, so that these tests need neither torch nor the real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from clmoe.runs import base_identity


@pytest.fixture(autouse=True, scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tiny_llava")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_identity, "TINY_FOLDER", folder)
        patch.setattr(os, "fsync", lambda handle: None)  # slow, and no test pulls the plug
        yield folder
