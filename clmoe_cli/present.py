"""How a command calls the library: events shown while it works, its result printed at the end."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clmoe.errors import ClmoeError
from clmoe_cli import console, progress
from clmoe_cli.options import DEFAULT_RUNS, RUNS_VARIABLE

if TYPE_CHECKING:
    from clmoe.stages.result import Result

ABOUT_A_RUN = {"train", "route", "merge", "index", "eval", "report", "status"}


@dataclass(frozen=True)
class Session:
    """One call of one command.

    Attributes:
        runs: the folder of all runs.
        given_runs: the same folder if it is not the usual one: suggested commands repeat it.
        run: the run that was named, if any.
        as_json: whether the result is one JSON object.
    """

    runs: Path
    given_runs: Path | None
    run: str | None
    as_json: bool

    def call(self, work: Callable[[Any], Result]) -> Result:
        """Call the library, which `work` gets as its argument, and show its events.

        Whatever a third-party library prints meanwhile goes to standard error.
        """
        try:
            with redirect_stdout(sys.stderr), progress.shown(console.error_console()):
                from clmoe.stages import pipeline

                return work(pipeline)
        except ClmoeError as error:
            error.hint = error.hint and self.repeat_options(error.hint)
            raise

    def show(self, result: Result) -> None:
        """Print the result; the suggested command gets the options that were typed."""
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
    context: typer.Context, *, runs: Path | None, run: str | None = None, as_json: bool
) -> Session:
    """The session of a command; `--runs` counts before the command and after it."""
    folder = runs or context.obj
    usual = Path(os.environ.get(RUNS_VARIABLE) or DEFAULT_RUNS)
    return Session(
        runs=folder, given_runs=folder if folder != usual else None, run=run, as_json=as_json
    )
