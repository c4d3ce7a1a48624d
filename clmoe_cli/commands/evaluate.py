"""`clmoe eval`: fill a row of the accuracy matrix."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from clmoe_cli.options import (
    AsJson,
    Overrides,
    Processes,
    ReportKind,
    RunName,
    RunsFolder,
    Yes,
    collect_overrides,
    examples,
)
from clmoe_cli.present import session

EXAMPLES = examples("clmoe eval --report ap-af", "clmoe eval --after location --tasks all")


class Tasks(StrEnum):
    """Which tasks of a row are evaluated."""

    SEEN = "seen"
    ALL = "all"


def evaluate(
    context: typer.Context,
    overrides: Overrides = None,
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            metavar="TASK",
            help="The model after this task, or base. (default: the newest trained one)",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        Tasks, typer.Option("--tasks", help="The tasks seen so far, or all of the order.")
    ] = Tasks.SEEN,
    report: Annotated[
        ReportKind, typer.Option("--report", help="What to print below the matrix.")
    ] = ReportKind.AP_AF,
    beta: Annotated[
        float | None,
        typer.Option(help="Share of the instance router, 0 to 1 (Eq 9); sets eval.beta."),
    ] = None,
    oracle_task: Annotated[
        bool | None,
        typer.Option(
            "--oracle-task/--no-oracle-task",
            help="Give each question its true task; sets eval.oracle_task.",
        ),
    ] = None,
    yes: Yes = False,
    processes: Processes = None,
    run: RunName = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the model on the test questions of the tasks seen so far."""
    changes = collect_overrides(overrides, shorthand={"eval.beta": beta}, takes_task=False)
    call = session(context, runs=runs, run=run, as_json=as_json, processes=processes)
    call.show(
        call.call(
            lambda pipeline: pipeline.evaluate(
                call.runs,
                run=run,
                after=after,
                tasks=tasks.value,
                report=report.value,
                oracle_task=oracle_task,
                overrides=changes,
                yes=yes,
            )
        )
    )
