"""The help: light, quick, in the order of the pipeline, with examples that work."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

COMMANDS = (
    "run",
    "study",
    "prepare",
    "train",
    "route",
    "merge",
    "index",
    "eval",
    "report",
    "compare",
    "status",
    "use",
    "clean",
    "recipes",
    "recipes list",
    "recipes show",
    "recipes explain",
    "export",
    "import",
    "audit",
    "doctor",
    "bench",
    "bench layer",
    "bench train",
    "bench eval",
)
HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "sklearn", "pydantic", "yaml")


def help_of(clmoe_command: Callable[..., Any], command: str) -> str:
    ran = clmoe_command(*command.split(), "--help")
    assert ran.code == 0
    text: str = ran.out
    return text


@pytest.mark.parametrize("command", COMMANDS)
def test_two_examples_that_work(
    clmoe_command: Callable[..., Any], pipeline: Any, command: str
) -> None:
    text = help_of(clmoe_command, command).partition("Examples:")[2]
    examples = [line.strip() for line in text.splitlines() if line.strip()]
    assert len(examples) >= 2
    for example in examples:
        assert example.startswith(f"clmoe {command}")
        ran = clmoe_command(*shlex.split(example)[1:])
        assert ran.code == 0, ran.err
    assert len(pipeline.calls) >= len(examples)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("recipes", "bench")])
def test_json_on_every_command(clmoe_command: Callable[..., Any], command: str) -> None:
    assert "--json" in help_of(clmoe_command, command)


@pytest.mark.parametrize(
    "command", ["prepare", "train", "route", "merge", "index", "eval", "report", "run", "status"]
)
def test_run_on_every_command_about_a_run(clmoe_command: Callable[..., Any], command: str) -> None:
    assert "--run" in help_of(clmoe_command, command)


def test_commands_stand_in_the_order_of_the_pipeline(clmoe_command: Callable[..., Any]) -> None:
    listed = re.findall(r"^│ (\w+)  ", help_of(clmoe_command, ""), flags=re.MULTILINE)
    assert listed == [c for c in COMMANDS if " " not in c]


def test_version(clmoe_command: Callable[..., Any]) -> None:
    ran = clmoe_command("--version")
    assert ran.code == 0
    assert re.fullmatch(r"clmoe \d+\.\d+\.\d+\S*\n", ran.out)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from clmoe_cli.app import main; code = main(['--help']);"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr.strip()) == (0, "[]")


def test_help_is_quick() -> None:
    """Processor time, which a busy machine does not stretch, beside that of bare Python."""

    def taken(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    help_, bare = (
        min(taken(*words) for _ in range(3))
        for words in (("-m", "clmoe_cli", "--help"), ("-c", "import typer, rich.console, logging"))
    )
    assert help_ < 4 * bare + 0.2, f"{help_:.2f} s beside {bare:.2f} s"
