"""`clmoe prepare`: read the data into one file per task and split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.options import (
    AsJson,
    KeepGoing,
    NewRunName,
    Overrides,
    RunsFolder,
    collect_overrides,
    examples,
)
from clmoe_cli.present import session

EXAMPLES = examples("clmoe prepare", "clmoe prepare --source vqa_v2 data.root=DIR")
LOCAL_RECIPE = "clmoe.yaml"


def prepare(
    context: typer.Context,
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="A shipped recipe's name, or a YAML file. (default: ./clmoe.yaml, else shapes)",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="NAME", help="The data source; sets data.source."),
    ] = None,
    keep_going: KeepGoing = False,
    name: NewRunName = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Prepare the data, start a run on it, and make that the current run."""
    changes = collect_overrides(overrides)
    if recipe is None and Path(LOCAL_RECIPE).is_file():
        recipe = LOCAL_RECIPE
    call = session(context, runs=runs, as_json=as_json)
    call.show(
        call.call(
            lambda pipeline: pipeline.prepare(
                call.runs,
                recipe=recipe,
                source=source,
                overrides=changes,
                name=name,
                keep_going=keep_going,
            )
        )
    )
