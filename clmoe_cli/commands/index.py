"""`clmoe index`: what later tells a question's task."""

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

EXAMPLES = examples("clmoe index", "clmoe index --kind kmeans index.centers=8")


def index(
    context: typer.Context,
    overrides: Overrides = None,
    task: Task = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="centroid, kmeans or lda; sets index.kind.")
    ] = None,
    processes: Processes = None,
    run: RunName = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Index the task's questions, so that a question's task can be found (R_t, Eq 7)."""
    changes = collect_overrides(overrides, shorthand={"index.kind": kind}, takes_task=True)
    call = session(context, runs=runs, run=run, as_json=as_json, processes=processes)
    call.show(
        call.call(lambda pipeline: pipeline.index(call.runs, run=run, task=task, overrides=changes))
    )
