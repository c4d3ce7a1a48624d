"""`clmoe use`: choose the current run."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.options import AsJson, RunsFolder, examples
from clmoe_cli.present import session

EXAMPLES = examples("clmoe use vanilla", "clmoe use shapes --runs /data/runs")


def use(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The run.")],
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Make a run the current one, on which bare commands act."""
    call = session(context, runs=runs, as_json=as_json)
    call.show(call.call(lambda pipeline: pipeline.use(call.runs, name)))
