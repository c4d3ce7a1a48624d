"""`clmoe clean`: remove what no run uses."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli import console
from clmoe_cli.options import AsJson, RunsFolder, examples
from clmoe_cli.present import session

EXAMPLES = examples("clmoe clean", "clmoe clean --yes")


def clean(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show which stored outputs no run uses; remove them if told to."""
    call = session(context, runs=runs, as_json=as_json)
    found = call.call(lambda pipeline: pipeline.clean(call.runs, apply=False))
    if yes and as_json:
        call.show(call.call(lambda pipeline: pipeline.clean(call.runs, apply=True)))
        return
    call.show(found)
    if found is None or not any(table.rows for table in found.tables):
        return
    if yes or (not as_json and console.ask("Remove them?")):
        call.show(call.call(lambda pipeline: pipeline.clean(call.runs, apply=True)))
