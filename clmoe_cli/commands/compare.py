"""`clmoe compare`: runs or a study side by side, with the paper's numbers in their own column."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.options import AsJson, RunsFolder, examples
from clmoe_cli.present import session

EXAMPLES = examples(
    "clmoe compare vanilla shapes",
    "clmoe compare table1_shapes --baseline vanilla --format latex --out table1.tex",
)


class Format(StrEnum):
    """How a comparison is written."""

    TABLE = "table"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"
    JSON = "json"


class Paper(StrEnum):
    """Which of the paper's numbers are shown."""

    LLAVA = "llava"
    ALL = "all"
    NONE = "none"


def compare(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|STUDY",
            help="Runs to compare, or a study: all its finished runs.",
            show_default=False,
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="RUN",
            help="The run or method that differences are taken to. (default: the first)",
            show_default=False,
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            metavar="NAME",
            help="exact, vqa, vqa-lenient, rouge-l, or one that a package adds. (default: as the "
            "first run's recipe says)",
            show_default=False,
        ),
    ] = None,
    paper: Annotated[
        Paper,
        typer.Option(
            "--paper", help="The paper's numbers: of LLaVA-7B, all (VL-T5 as its own block), none."
        ),
    ] = Paper.LLAVA,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="How to write it. (default: by the suffix of --out, else a table)",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it to this file.", show_default=False),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            metavar="DIR",
            help="Draw accuracy over time, and curves over gamma and beta, as PNG and SVG.",
            show_default=False,
        ),
    ] = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: metrics, seeds as one with their spread, differences with intervals."""
    call = session(context, runs=runs, as_json=as_json)
    call.show(
        call.call(
            lambda pipeline: pipeline.compare(
                call.runs,
                names=names,
                baseline=baseline,
                scorer=scorer,
                paper=paper.value,
                form=None if form is None else form.value,
                out=out,
                figures=figures,
            )
        )
    )
