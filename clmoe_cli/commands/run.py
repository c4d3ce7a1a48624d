"""`clmoe run`: the whole sequence of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe.errors import UsageError
from clmoe_cli.options import (
    AsJson,
    KeepGoing,
    NewRunName,
    Overrides,
    Processes,
    RunsFolder,
    collect_overrides,
    examples,
)
from clmoe_cli.present import session

EXAMPLES = examples(
    "clmoe run shapes", "clmoe run shapes --name vanilla method.name=vanilla --dry-run"
)


def run(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the plan, with a reason for each stage.")
    ] = False,
    keep_going: KeepGoing = False,
    name: NewRunName = None,
    processes: Processes = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Run every stage of a recipe over all tasks; go on where it stopped before."""
    if "=" in recipe and not Path(recipe).exists():
        raise UsageError(
            f"the recipe is missing before '{recipe}'", hint=f"clmoe run shapes {recipe}"
        )
    changes = collect_overrides(overrides)
    call = session(context, runs=runs, as_json=as_json, processes=processes)
    call.show(
        call.call(
            lambda pipeline: pipeline.run(
                call.runs,
                recipe=recipe,
                overrides=changes,
                name=name,
                dry_run=dry_run,
                keep_going=keep_going,
            )
        )
    )
