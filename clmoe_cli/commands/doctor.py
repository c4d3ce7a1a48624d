"""`clmoe doctor`: this machine, and whether a recipe fits into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.options import AsJson, Overrides, RunsFolder, collect_overrides, examples
from clmoe_cli.present import session

EXAMPLES = examples("clmoe doctor", "clmoe doctor shapes train.micro_batch=4")


def doctor(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="Also say whether this recipe fits: a shipped one's name, or a YAML file.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Report versions, devices and disk, and the memory that a recipe would take."""
    given = list(overrides or ())
    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        given, recipe = [recipe, *given], None
    changes = collect_overrides(given)
    call = session(context, runs=runs, as_json=as_json)
    call.show(
        call.call(lambda pipeline: pipeline.doctor(call.runs, recipe=recipe, overrides=changes))
    )
