"""The command line over a pipeline that only remembers how it was called."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import clmoe.stages
from clmoe_cli.app import main

FAKE = Path(__file__).with_name("fake_pipeline.py")


@dataclass(frozen=True)
class Ran:
    """What a command did: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.out)
        return loaded


@pytest.fixture
def fake_script() -> Path:
    """A script that runs the command line on a fake pipeline."""
    return FAKE


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("fake_pipeline", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fake = module.FakePipeline()
    monkeypatch.setitem(sys.modules, "clmoe.stages.pipeline", fake)
    monkeypatch.setattr(clmoe.stages, "pipeline", fake, raising=False)
    return fake


@pytest.fixture
def clmoe_command(
    pipeline: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., Ran]:
    """Runs `clmoe ARGUMENTS` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLMOE_RUNS", raising=False)
    monkeypatch.delenv("CLMOE_DEBUG", raising=False)

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
