"""`clmoe report`: the accuracy matrix and its metrics, as tables and files."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.options import (
    AsJson,
    Overrides,
    ReportKind,
    RunName,
    RunsFolder,
    collect_overrides,
    examples,
)
from clmoe_cli.present import session

EXAMPLES = examples("clmoe report --figures", "clmoe report --report ap-af report.scorer=vqa")


def report(
    context: typer.Context,
    overrides: Overrides = None,
    report_kind: Annotated[
        ReportKind, typer.Option("--report", help="What to print below the matrix.")
    ] = ReportKind.ALL,
    figures: Annotated[
        bool,
        typer.Option("--figures", help="Also draw figures, as PNG and SVG, beside the report."),
    ] = False,
    run: RunName = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Write the matrix, its metrics and what happened inside the run, and print them."""
    changes = collect_overrides(overrides)
    call = session(context, runs=runs, run=run, as_json=as_json)
    call.show(
        call.call(
            lambda pipeline: pipeline.report(
                call.runs, run=run, kind=report_kind.value, overrides=changes, figures=figures
            )
        )
    )
