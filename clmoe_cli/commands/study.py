"""`clmoe study`: many runs that differ in a few keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from clmoe.errors import UsageError
from clmoe_cli.options import AsJson, Overrides, RunsFolder, collect_overrides, examples
from clmoe_cli.present import session

EXAMPLES = examples(
    "clmoe study table2_ablation_shapes --dry-run",
    "clmoe study figure3_gamma_beta_shapes --jobs 2",
    "clmoe study table1 data.root=DIR --print-commands",
)


def study(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A shipped study's name, or a YAML file with name, recipe, and grid, runs, seeds"
            " or orders.",
        ),
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only count runs and trainings, and estimate the time."),
    ] = False,
    print_commands: Annotated[
        bool,
        typer.Option(
            "--print-commands", help="Only print one command a run, for any scheduler to start."
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", metavar="N", min=1, help="Runs at once, each in a process of its own."
        ),
    ] = 1,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Do every run of a study; equal stages are shared, finished runs skipped."""
    if "=" in file and not Path(file).exists():
        raise UsageError(f"the study is missing before '{file}'", hint="clmoe study --help")
    if dry_run and print_commands:
        raise UsageError(
            "--dry-run and --print-commands: give one of them",
            hint=f"clmoe study {file} --dry-run",
        )
    changes = collect_overrides(overrides)
    call = session(context, runs=runs, as_json=as_json)
    result = call.call(
        lambda pipeline: pipeline.study(
            call.runs,
            source=file,
            overrides=changes,
            dry_run=dry_run,
            print_commands=print_commands,
            jobs=jobs,
        )
    )
    if result is not None and print_commands:
        commands = [call.repeat_options(command) for command in result.notes]
        data = {**result.data, "commands": commands}
        result = replace(result, notes=tuple(commands), data=data)
    call.show(result)
