"""Fixtures shared by all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lies beside some checkouts; users do not have it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the optional folder ../shared/data is absent")
    return folder


SMALL = (
    "data.tasks=recognition,location,count",
    "data.train_per_task=48",
    "data.val_per_task=8",
    "data.test_per_task=24",
    "adapter.rank=16",
    "adapter.alpha=32",
    "train.lr=5e-3",
    "train.checkpoint_every=1",
    "runtime.threads=1",
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the finished run ``small`` (three tasks, the full method)."""
    from clmoe.stages import pipeline

    runs = tmp_path_factory.mktemp("finished") / "runs"
    pipeline.run(
        runs, recipe="shapes", overrides=SMALL, name="small", dry_run=False, keep_going=False
    )
    return runs


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"
