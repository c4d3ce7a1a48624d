"""The command `clmoe`: its commands in the order of the pipeline, and its exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.commands import (
    audit,
    bench,
    clean,
    compare,
    doctor,
    evaluate,
    export,
    import_,
    index,
    merge,
    prepare,
    recipes,
    report,
    route,
    run,
    status,
    study,
    train,
    use,
)
from clmoe_cli.options import DEFAULT_RUNS, RUNS_VARIABLE, examples

WHOLE = "The whole sequence"
STEPS = "Its steps, in order"
RUNS = "Runs and recipes"
ADAPTERS = "Adapters"
MACHINE = "This machine"

app = typer.Typer(
    name="clmoe",
    help="Continual visual question answering with CL-MoE: a mixture of LoRA experts, two routers"
    " and momentum merges, one task after another.",
    epilog=examples("clmoe run shapes", "clmoe prepare"),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run", rich_help_panel=WHOLE, epilog=run.EXAMPLES)(run.run)
app.command("study", rich_help_panel=WHOLE, epilog=study.EXAMPLES)(study.study)
app.command("prepare", rich_help_panel=STEPS, epilog=prepare.EXAMPLES)(prepare.prepare)
app.command("train", rich_help_panel=STEPS, epilog=train.EXAMPLES)(train.train)
app.command("route", rich_help_panel=STEPS, epilog=route.EXAMPLES)(route.route)
app.command("merge", rich_help_panel=STEPS, epilog=merge.EXAMPLES)(merge.merge)
app.command("index", rich_help_panel=STEPS, epilog=index.EXAMPLES)(index.index)
app.command("eval", rich_help_panel=STEPS, epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("report", rich_help_panel=STEPS, epilog=report.EXAMPLES)(report.report)
app.command("compare", rich_help_panel=RUNS, epilog=compare.EXAMPLES)(compare.compare)
app.command("status", rich_help_panel=RUNS, epilog=status.EXAMPLES)(status.status)
app.command("use", rich_help_panel=RUNS, epilog=use.EXAMPLES)(use.use)
app.command("clean", rich_help_panel=RUNS, epilog=clean.EXAMPLES)(clean.clean)
app.add_typer(recipes.app, name="recipes", rich_help_panel=RUNS)
app.command("export", rich_help_panel=ADAPTERS, epilog=export.EXAMPLES)(export.export)
app.command("import", rich_help_panel=ADAPTERS, epilog=import_.EXAMPLES)(import_.import_)
app.command("audit", rich_help_panel=ADAPTERS, epilog=audit.EXAMPLES)(audit.audit)
app.command("doctor", rich_help_panel=MACHINE, epilog=doctor.EXAMPLES)(doctor.doctor)
app.add_typer(bench.app, name="bench", rich_help_panel=MACHINE)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"clmoe {version('clmoe')}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    runs: Annotated[
        Path,
        typer.Option("--runs", metavar="DIR", envvar=RUNS_VARIABLE, help="Folder of all runs."),
    ] = Path(DEFAULT_RUNS),
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before the command."""
    context.obj = runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; by default this process's own.

    Returns:
        The exit code: 0 done, 1 failed, 2 usage, 3 an input stage is missing or stale, 4 bad data,
        5 out of memory, 130 interrupted.
    """
    from clmoe_cli import console
    from clmoe_cli.failures import INTERRUPTED, describe, hand_over, noticing_interrupts
    from clmoe_cli.present import COMMAND_LINE

    words = list(sys.argv[1:] if arguments is None else arguments)
    COMMAND_LINE.set(words)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # It warns, whenever PEFT imports it on some CPUs, about a kernel that is never used.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    error: BaseException
    with noticing_interrupts() as interrupts:
        try:
            code = app(words, prog_name="clmoe", standalone_mode=False)
            if code != INTERRUPTED:
                return code if isinstance(code, int) else 0
            error = KeyboardInterrupt()
        except (Exception, KeyboardInterrupt) as raised:
            error = KeyboardInterrupt() if interrupts.happened else raised
    failure = describe(error)
    if not failure.message:  # a bare `clmoe`: its help has been printed instead
        return failure.exit_code
    if hand_over(failure, error):
        return failure.exit_code
    console.show_failure(failure, error, as_json="--json" in words)
    return failure.exit_code
