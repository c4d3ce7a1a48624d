"""`clmoe route`: average the gates over a task's data."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.options import (
    AsJson,
    Overrides,
    Processes,
    RunName,
    RunsFolder,
    Task,
    collect_overrides,
    examples,
)
from clmoe_cli.present import session

EXAMPLES = examples("clmoe route", "clmoe route --task location --top-k 3")


def route(
    context: typer.Context,
    overrides: Overrides = None,
    task: Task = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", help="Experts that count as the task's; sets route.top_k."),
    ] = None,
    processes: Processes = None,
    run: RunName = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Find the task's router weights (w_T, Eq 6) and its top experts (E_t)."""
    changes = collect_overrides(overrides, shorthand={"route.top_k": top_k}, takes_task=True)
    call = session(context, runs=runs, run=run, as_json=as_json, processes=processes)
    call.show(
        call.call(lambda pipeline: pipeline.route(call.runs, run=run, task=task, overrides=changes))
    )
