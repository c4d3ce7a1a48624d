"""How a command calls the library: events shown while it works, its result printed at the end."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clmoe.errors import ClmoeError
from clmoe_cli import console, progress
from clmoe_cli.options import DEFAULT_RUNS, RUNS_VARIABLE

if TYPE_CHECKING:
    from clmoe.stages.result import Result

COMMAND_LINE: ContextVar[Sequence[str]] = ContextVar("COMMAND_LINE", default=())
"""What was typed after the program's name, for the processes that repeat it."""
ABOUT_A_RUN = {"train", "route", "merge", "index", "eval", "report", "status"}


@dataclass(frozen=True)
class Session:
    """One call of one command.

    Attributes:
        runs: the folder of all runs.
        given_runs: the same folder if it is not the usual one: suggested commands repeat it.
        run: the run that was named, if any.
        as_json: whether the result is one JSON object.
        processes: how many processes share the work; None: one, or as many as a launcher started.
    """

    runs: Path
    given_runs: Path | None
    run: str | None
    as_json: bool
    processes: int | None = None

    def call(self, work: Callable[[Any], Result]) -> Result | None:
        """Call the library, which `work` gets as its argument, and show its events.

        Whatever a third-party library prints meanwhile goes to standard error.

        Returns:
            The result; None where another process shows it.
        """
        from clmoe.parallel import launch

        wanted = launch.wanted(self.processes)
        if wanted > 1:
            launch.launch(wanted, COMMAND_LINE.get())
            return None
        try:
            with redirect_stdout(sys.stderr), ExitStack() as stack:
                if launch.launched():
                    from clmoe.stages.following import together

                    if not stack.enter_context(together()):
                        return None
                stack.enter_context(progress.shown(console.error_console()))
                from clmoe.stages import pipeline

                return work(pipeline)
        except ClmoeError as error:
            error.hint = error.hint and self.repeat_options(error.hint)
            raise

    def show(self, result: Result | None) -> None:
        """Print the result, if it is ours to print; the suggested command gets what was typed."""
        if result is None:
            return
        following = result.next_command and self.repeat_options(result.next_command)
        console.show_result(result, as_json=self.as_json, next_command=following)

    def repeat_options(self, command: str) -> str:
        """A suggested `clmoe ...` command with the `--runs` and `--run` that were typed."""
        words = command.split()
        if len(words) < 2 or words[0] != "clmoe":
            return command
        if self.run and words[1] in ABOUT_A_RUN and "--run" not in words:
            command += f" --run {shlex.quote(self.run)}"
        if self.given_runs:
            folder = shlex.quote(str(self.given_runs))
            command = f"clmoe --runs {folder} {command.removeprefix('clmoe ')}"
        return command


def session(
    context: typer.Context,
    *,
    runs: Path | None,
    run: str | None = None,
    as_json: bool,
    processes: int | None = None,
) -> Session:
    """The session of a command; `--runs` counts before the command and after it."""
    folder = runs or context.obj
    usual = Path(os.environ.get(RUNS_VARIABLE) or DEFAULT_RUNS)
    return Session(
        runs=folder,
        given_runs=folder if folder != usual else None,
        run=run,
        as_json=as_json,
        processes=processes,
    )
