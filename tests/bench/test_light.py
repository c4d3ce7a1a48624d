"""`python -m clmoe.bench` runs where most of clmoe's dependencies are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clmoe.bench.__main__ import main, parse

# PyYAML and filelock are dependencies of huggingface_hub itself, so they are there.
ABSENT = ("datasets", "pydantic", "typer", "rich", "sklearn", "scipy", "pyarrow", "matplotlib")
FEW = ["--rank", "4", "--experts", "2", "--device", "cpu", "--repeats", "1"]
LAYER = ["layer", "--hidden", "16", "--intermediate", "24", "--tokens", "8", *FEW]
TRAIN = ["train", "--batch", "1", "--tokens", "8", "--layers", "1", *FEW]
EVAL = ["eval", "--batch-size", "2", "--new-tokens", "1", "--layers", "1", *FEW]
PROGRAM = f"""
import runpy, sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
for arguments in {[LAYER, TRAIN, EVAL]!r}:
    sys.argv[1:] = [*arguments, "--json"]
    try:
        runpy.run_module("clmoe.bench", run_name="__main__")
    except SystemExit as stopped:
        assert stopped.code == 0, stopped.code
    sys.stdout.write("----")
found = {{name.partition(".")[0] for name in sys.modules}} & set({ABSENT!r})
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("clmoe.")}}
sys.stdout.write(f"{{sorted(found)}} {{sorted(rooms)}}")
"""


def test_it_needs_neither_recipes_nor_runs(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *objects, last = done.stdout.split("----")
    assert [json.loads(one)["bench"] for one in objects] == ["layer", "train", "eval"]
    assert last.startswith("[] ")
    assert "'bench'" in last
    for room in ("recipe", "runs", "stages", "reporting", "interop"):
        assert f"'{room}'" not in last, last


def test_tables_without_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(LAYER) == 0
    out = capsys.readouterr().out
    assert out.startswith("one linear, 16 x 24, 8 tokens\nadapter ")
    assert out.splitlines()[-1].startswith("mlp: clmoe takes ")


def test_errors_have_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LAYER, "--dtype", "int"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: 'int' is no dtype to measure\nhint: --dtype is one of float32, bfloat16, float16\n"
    )


def test_only_what_was_given_is_passed_on() -> None:
    assert parse(["layer"]) == ("layer", {}, False)
    assert parse(["train", "--gradient-checkpointing", "--layers", "2", "--json"]) == (
        "train",
        {"checkpointing": True, "layers": 2},
        True,
    )
    assert parse(["eval", "--batch-size", "8"]) == ("eval", {"batch": 8}, False)
