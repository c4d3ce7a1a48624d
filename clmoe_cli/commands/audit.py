"""`clmoe audit`: what an adapter holds, how two differ, and what a merge did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.options import AsJson, examples
from clmoe_cli.present import session

EXAMPLES = examples(
    "clmoe audit adapters/location",
    "clmoe audit theta_previous phi merged",
)


def audit(
    context: typer.Context,
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER",
            help="Adapter folders of any known format. One: what it holds. Two: how they differ."
            " Three, as theta_{t-1}, phi_t and the merged one: the lambda of each expert (Eq 12).",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Measure adapters on their tensors, and say what a merge really did."""
    call = session(context, runs=None, as_json=as_json)
    call.show(call.call(lambda pipeline: pipeline.audit(adapters)))
