"""`clmoe merge`: the momentum merge of a task's experts."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.options import (
    AsJson,
    Overrides,
    RunName,
    RunsFolder,
    Task,
    collect_overrides,
    examples,
)
from clmoe_cli.present import session

EXAMPLES = examples("clmoe merge --gamma 0.7", "clmoe merge --task location merge.space=product")


def merge(
    context: typer.Context,
    overrides: Overrides = None,
    task: Task = None,
    gamma: Annotated[
        float | None,
        typer.Option("--gamma", help="Momentum, above 0.5 and at most 1; sets merge.gamma."),
    ] = None,
    run: RunName = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Merge the task's experts into the model so far (gives theta_t, Eq 10-12)."""
    changes = collect_overrides(overrides, shorthand={"merge.gamma": gamma}, takes_task=True)
    call = session(context, runs=runs, run=run, as_json=as_json)
    call.show(
        call.call(lambda pipeline: pipeline.merge(call.runs, run=run, task=task, overrides=changes))
    )
