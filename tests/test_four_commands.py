"""The four commands of the README, typed one after another in an empty folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CLMOE = [sys.executable, "-m", "clmoe_cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def clmoe(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*CLMOE, *arguments], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def hear_interrupts() -> None:
    """Undo what a shell does to background jobs: they ignore Ctrl-C, and so would this child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_four_commands_in_an_empty_folder(tmp_path: Path) -> None:
    prepared = clmoe(tmp_path, "prepare")
    assert prepared.stdout.splitlines()[-1] == "next: clmoe train --task recognition"
    assert "clmoe prepare --source vqa_v2 data.root=DIR" in prepared.stdout
    trained = clmoe(tmp_path, "train", "--task", "recognition")
    assert trained.stdout.splitlines()[-1] == "next: clmoe merge"
    merged = clmoe(tmp_path, "merge", "--gamma", "0.7")
    assert "nothing to merge: theta_1 = phi_1" in merged.stdout
    evaluated = clmoe(tmp_path, "eval", "--report", "ap-af")
    assert "after 1 of 10" in evaluated.stdout
    assert "AF                -" in evaluated.stdout
    assert evaluated.stdout.splitlines()[-1] == "next: clmoe train --task location"
    again = json.loads(clmoe(tmp_path, "eval", "--report", "ap-af", "--json").stdout)
    assert {outcome["status"] for outcome in again["outcomes"]} == {"skipped"}
    assert again["data"]["metrics"]["AF"]["value"] is None
    refused = clmoe(tmp_path, "train", "--task", "count", code=2)
    assert "location comes before it" in refused.stderr


@pytest.mark.slow
def test_interrupted_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A real Ctrl-C in the middle; the resumed adapter equals the uninterrupted one."""
    small = [
        "data.tasks=recognition",
        "data.train_per_task=160",
        "data.test_per_task=8",
        "data.val_per_task=8",
        "train.checkpoint_every=1",
        "train.epochs=20",
    ]
    for name in ("whole", "cut"):
        clmoe(tmp_path, "--runs", name, "prepare", "--recipe", "shapes", *small)
    clmoe(tmp_path, "--runs", "whole", "train")
    process = subprocess.Popen(
        [*CLMOE, "--runs", "cut", "train"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cut/.store/train/.partial-*/checkpoint.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = subprocess.run(
        [*CLMOE, "--runs", "cut", "merge"], cwd=tmp_path, capture_output=True, text=True
    )
    assert second.returncode == 1
    assert f"process {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    resumed = json.loads(clmoe(tmp_path, "--runs", "cut", "train", "--json").stdout)
    (outcome,) = resumed["outcomes"]
    assert 0 < outcome["summary"]["resumed_at"] < 200
    first, other = (
        (tmp_path / name / "shapes/train/01-recognition/adapter/adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    assert first.read_bytes() == other.read_bytes()
