"""Errors become a message, a hint and an exit code, on a terminal's terms or as JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from clmoe.errors import (
    ClmoeError,
    DataError,
    InputStageError,
    MemoryExhaustedError,
    UsageError,
)

HINT = "clmoe train --task location"
KNOWN = [
    (ClmoeError("it failed", hint=HINT), 1),
    (UsageError("it failed", hint=HINT), 2),
    (InputStageError("it failed", hint=HINT), 3),
    (DataError("it failed", hint=HINT), 4),
    (MemoryExhaustedError("it failed", hint=HINT), 5),
]


@pytest.mark.parametrize(("error", "code"), KNOWN, ids=lambda value: type(value).__name__)
def test_an_error_is_a_message_a_hint_and_a_code(
    clmoe_command: Callable[..., Any], pipeline: Any, error: ClmoeError, code: int
) -> None:
    pipeline.error = error
    ran = clmoe_command("train")
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.splitlines()[-2:] == ["error: it failed", f"hint: {HINT}"]
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(("error", "code"), KNOWN, ids=lambda value: type(value).__name__)
def test_an_error_as_json_is_one_object(
    clmoe_command: Callable[..., Any], pipeline: Any, error: ClmoeError, code: int
) -> None:
    pipeline.error = error
    ran = clmoe_command("train", "--json")
    assert ran.code == code
    assert ran.json == {"error": "it failed", "hint": HINT, "problems": [], "exit_code": code}


def test_a_usage_error_as_json(clmoe_command: Callable[..., Any]) -> None:
    ran = clmoe_command("train", "recognition", "--json")
    assert ran.code == 2
    assert ran.json["exit_code"] == 2
    assert "'recognition' is not KEY=VALUE" in ran.json["error"]


def test_every_problem_of_bad_data_is_listed(
    clmoe_command: Callable[..., Any], pipeline: Any
) -> None:
    problems = ("questions.json:3: no answer", "question 12: [red] is no question type")
    pipeline.error = DataError("2 questions are bad", problems=problems)
    assert clmoe_command("prepare").err.splitlines()[-3:] == [
        "error: 2 questions are bad",
        "  questions.json:3: no answer",
        "  question 12: [red] is no question type",
    ]
    assert clmoe_command("prepare", "--json").json["problems"] == list(problems)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interrupt_is_one_line(
    clmoe_command: Callable[..., Any], pipeline: Any, error: BaseException
) -> None:
    pipeline.error = error
    ran = clmoe_command("run", "shapes")
    assert ran.code == 130
    last = "interrupted; nothing lost: run the same command again"
    assert ran.err.splitlines()[-1] == last
    assert "Traceback" not in ran.err


def test_an_interrupt_that_a_library_turned_into_an_error(
    clmoe_command: Callable[..., Any], pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(pipeline, "status", status, raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert clmoe_command("status").code == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


class TestUnexpected:
    """A defect of ours: one line, and how to see more."""

    def test_one_line_and_how_to_see_the_traceback(
        self, clmoe_command: Callable[..., Any], pipeline: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["clmoe", "run", "my recipe.yaml"])
        pipeline.error = KeyError("gate")
        ran = clmoe_command("run", "my recipe.yaml")
        assert ran.code == 1
        assert ran.err.splitlines()[-2:] == [
            "error: unexpected KeyError: 'gate'",
            "hint: CLMOE_DEBUG=1 clmoe run 'my recipe.yaml'  shows the traceback",
        ]

    def test_debug_shows_the_traceback(
        self, clmoe_command: Callable[..., Any], pipeline: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipeline.error = ClmoeError("it failed")
        monkeypatch.setenv("CLMOE_DEBUG", "1")
        ran = clmoe_command("train")
        assert "Traceback" in ran.err
        assert ran.err.splitlines()[-1] == "error: it failed"

    def test_a_full_disk_says_where(self, clmoe_command: Callable[..., Any], pipeline: Any) -> None:
        pipeline.error = OSError(28, "No space left on device", "runs/.store/x")
        ran = clmoe_command("train")
        assert ran.code == 1
        assert "error: No space left on device: runs/.store/x" in ran.err

    def test_memory_of_the_machine(self, clmoe_command: Callable[..., Any], pipeline: Any) -> None:
        pipeline.error = MemoryError()
        assert clmoe_command("train").code == 5


def test_a_reader_that_goes_away_is_no_failure(fake_script: Path) -> None:
    """As in `clmoe status | head -0`: the work was done."""
    program = (
        f"import runpy, sys, time; sys.argv = ['clmoe', 'status']; time.sleep(0.3);"
        f"runpy.run_path({str(fake_script)!r}, run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0, errors
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_text_that_the_terminal_cannot_show_is_replaced(fake_script: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(fake_script), "train", "\u03b8"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        check=False,
    )
    assert ran.returncode == 2
    assert b"error: '?' is not KEY=VALUE" in ran.stderr


def test_python_dash_m_is_the_same_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "clmoe_cli", "trian", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert json.loads(ran.stdout)["exit_code"] == 2
