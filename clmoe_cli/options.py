"""Options and arguments that several commands share, and what the commands make of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clmoe.errors import UsageError

COMMON = "Common options"
RUNS_VARIABLE = "CLMOE_RUNS"
DEFAULT_RUNS = "runs"

RunsFolder = Annotated[
    Path | None,
    typer.Option(
        "--runs",
        metavar="DIR",
        help="Folder of all runs. (default: $CLMOE_RUNS, else ./runs)",
        rich_help_panel=COMMON,
        show_default=False,
    ),
]
RunName = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Act on this run instead of the current one.",
        rich_help_panel=COMMON,
    ),
]
NewRunName = Annotated[
    str | None,
    typer.Option(
        "--name",
        "--run",
        metavar="NAME",
        help="Name of the run. (default: the recipe's name)",
        rich_help_panel=COMMON,
        show_default=False,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="One JSON object on standard output; everything else on standard error.",
        rich_help_panel=COMMON,
    ),
]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", help="The task. (default: the newest trained one)"),
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", help="Go ahead where the estimate for stages brought up to date is over 5 minutes."
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        help="Share the work among N processes: one for each GPU, or on a CPU.",
        show_default=False,
    ),
]
KeepGoing = Annotated[
    bool,
    typer.Option("--keep-going", help="Write bad questions to rejected.jsonl and go on."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Recipe keys to set for this run; `clmoe recipes explain KEY` tells what one does.",
        show_default=False,
    ),
]


class ReportKind(StrEnum):
    """What a report says besides the matrix."""

    AP_AF = "ap-af"
    ALL = "all"
    NONE = "none"


def examples(*commands: str) -> str:
    """The epilog of a command's help: its examples, one a line."""
    return "\n".join(["Examples:", *commands])


def collect_overrides(
    arguments: Sequence[str] | None,
    *,
    shorthand: Mapping[str, object] | None = None,
    takes_task: bool = False,
) -> list[str]:
    """Trailing KEY=VALUE arguments and options that are shorthand for a recipe key, as one list.

    Raises:
        UsageError: for an argument that is no KEY=VALUE, and for a key given both ways.
    """
    given = list(arguments or ())
    for argument in given:
        key, equals, _ = argument.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"'{argument}' is not KEY=VALUE", hint=_hint_for(argument, takes_task=takes_task)
            )
    keys = {argument.partition("=")[0].strip() for argument in given}
    overrides = []
    for key, value in (shorthand or {}).items():
        if value is None:
            continue
        if key in keys:
            raise UsageError(
                f"{key} is given twice: by its option and as {key}=VALUE", hint="give it once"
            )
        overrides.append(f"{key}={value}")
    return overrides + given


def _hint_for(argument: str, *, takes_task: bool) -> str:
    from clmoe.recipe.keys import keys

    word = argument.partition(":")[0].strip()
    names = {name.rpartition(".")[2]: name for name in keys()} | {name: name for name in keys()}
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    if close:
        return f"did you mean {names[close[0]]}=VALUE?"
    if takes_task and "." not in word:
        return f"did you mean --task {word}?"
    return "a recipe key and its value look like train.lr=1e-4"
