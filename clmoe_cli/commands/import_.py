"""`clmoe import`: an adapter of the released code as one of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.options import AsJson, examples
from clmoe_cli.present import session

EXAMPLES = examples(
    "clmoe import checkpoints/location --out adapters/location",
    "clmoe import DIR --out location --base llava-hf/llava-1.5-7b-hf",
)


def import_(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="An adapter folder of CL-MoE, MCITlib, EasyCL or CoIN."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where to; it must not exist.")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="NAME",
            help="The base model it is for. (default: as the folder says)",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert an adapter of the released code; every tensor is accounted for, no code is run."""
    call = session(context, runs=None, as_json=as_json)
    call.show(call.call(lambda pipeline: pipeline.import_adapter(folder, out=out, base=base)))
