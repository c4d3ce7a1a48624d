"""`clmoe status`: what of a run is up to date, and why not."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.options import AsJson, RunName, RunsFolder, examples
from clmoe_cli.present import session

EXAMPLES = examples("clmoe status", "clmoe status --run vanilla --verify")


def status(
    context: typer.Context,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file again and compare.")
    ] = False,
    run: RunName = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show which stages are fresh, stale, missing or damaged, and why."""
    call = session(context, runs=runs, run=run, as_json=as_json)
    call.show(call.call(lambda pipeline: pipeline.status(call.runs, run=run, verify=verify)))
