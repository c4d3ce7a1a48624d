"""`clmoe train`: train the experts on one task."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.options import (
    AsJson,
    Overrides,
    Processes,
    RunName,
    RunsFolder,
    Yes,
    collect_overrides,
    examples,
)
from clmoe_cli.present import session

EXAMPLES = examples("clmoe train --task recognition", "clmoe train --lr 1e-4 train.epochs=2")


def train(
    context: typer.Context,
    overrides: Overrides = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="The task. (default: the one that is due)",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate; sets train.lr.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Sets train.seed.")] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Train an earlier task again; lists what becomes stale."),
    ] = False,
    yes: Yes = False,
    processes: Processes = None,
    run: RunName = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Train on one task, from the model merged so far (gives phi_t)."""
    shorthand = {"train.lr": lr, "train.seed": seed}
    changes = collect_overrides(overrides, shorthand=shorthand, takes_task=True)
    call = session(context, runs=runs, run=run, as_json=as_json, processes=processes)
    call.show(
        call.call(
            lambda pipeline: pipeline.train(
                call.runs, run=run, task=task, overrides=changes, again=again, yes=yes
            )
        )
    )
