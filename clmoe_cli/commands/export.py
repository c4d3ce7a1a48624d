"""`clmoe export`: what a run learned as one folder with a card, for others to load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.options import AsJson, RunName, RunsFolder, examples
from clmoe_cli.present import session

EXAMPLES = examples(
    "clmoe export --out learned", "clmoe export --after location --out learned --push USER/NAME"
)


def export(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where to; it must not exist.")
    ],
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            metavar="TASK",
            help="The adapter after this task. (default: the newest trained one)",
            show_default=False,
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="REPO_ID",
            help="Also upload it to this repository of the Hugging Face Hub; a new one is private.",
        ),
    ] = None,
    run: RunName = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Write adapter, task routers, index and model card of a run to one folder."""
    call = session(context, runs=runs, run=run, as_json=as_json)
    call.show(
        call.call(
            lambda pipeline: pipeline.export_bundle(
                call.runs, out=out, run=run, after=after, push=push
            )
        )
    )
