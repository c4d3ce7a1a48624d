"""The only printing: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmoe_cli import tables
from clmoe_cli.failures import INTERRUPTED, Failure, traceback_text, wants_traceback
from clmoe_cli.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from clmoe.stages.result import Outcome, Result

SKIPS_SHOWN = 3
DONE_SHOWN = 12


def error_console() -> Console:
    """Standard error as a rich console that prints text as it is."""
    return _console(sys.stderr)


def show_result(result: Result, *, as_json: bool, next_command: str | None) -> None:
    """A finished command: what it did, its tables, its notes, and last the next command."""
    if as_json:
        _write_json(result_as_json(result, next_command=next_command))
        return
    blocks: list[Callable[[], None]] = []
    facts = outcome_lines(result.outcomes)
    if facts:
        blocks.append(partial(_write, "\n".join(facts)))
    blocks += [partial(_write_table, table) for table in result.tables]
    if result.notes:
        blocks.append(partial(_write, "\n".join(result.notes)))
    for number, write in enumerate(blocks):
        if number:
            _write("")
        write()
    if next_command:
        _write(f"next: {next_command}")


def show_failure(failure: Failure, error: BaseException, *, as_json: bool) -> None:
    """A failed command: what went wrong, each single problem, and what to do."""
    console = error_console()
    if wants_traceback(error):
        console.print(traceback_text(error), soft_wrap=True)
    if failure.exit_code != INTERRUPTED:
        console.print("error: ", style="bold red", end="")
    console.print(failure.message, soft_wrap=True)
    for problem in failure.problems:
        console.print(f"  {problem}", soft_wrap=True)
    if failure.hint:
        console.print(f"hint: {failure.hint}", soft_wrap=True)
    if as_json:
        _write_json(failure.as_json())


def ask(question: str) -> bool:
    """Ask on a terminal; without one the answer is no."""
    import typer

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return typer.confirm(question, err=True)


def outcome_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each stage with its facts below; where they are many, a count and the last one.

    The single stages of a long run were on standard error while it worked.
    """
    skipped = [outcome for outcome in outcomes if outcome.status == "skipped"]
    done = [outcome for outcome in outcomes if outcome.status != "skipped"]
    lines: list[str] = []
    if len(skipped) > SKIPS_SHOWN:
        lines.append(f"skipped {len(skipped)} stages that are up to date")
    else:
        for outcome in skipped:
            lines.append(f"skipped {outcome.node_label}: {outcome.reason}")
            lines += [f"  {line}" for line in outcome.lines]
    if len(done) > DONE_SHOWN:
        seconds = sum(outcome.seconds for outcome in done)
        lines.append(f"{len(done)} stages done in {duration(seconds)}, the last of them:")
        done = done[-1:]
    for outcome in done:
        lines.append(f"{outcome.node_label}: done in {duration(outcome.seconds)}")
        lines += [f"  {line}" for line in outcome.lines]
    return lines


def result_as_json(result: Result, *, next_command: str | None) -> dict[str, Any]:
    """The object that `--json` prints for a result."""
    return {
        "command": result.command,
        "run": result.run,
        "outcomes": [
            {
                "stage": outcome.node_label,
                "status": outcome.status,
                "reason": outcome.reason,
                "seconds": round(outcome.seconds, 3),
                "fingerprint": outcome.fingerprint,
                "path": outcome.path,
                "summary": outcome.summary,
                "lines": outcome.lines,
            }
            for outcome in result.outcomes
        ],
        "tables": [
            {"title": table.title, "columns": table.columns, "rows": table.rows}
            for table in result.tables
        ],
        "data": result.data,
        "notes": result.notes,
        "next": next_command,
        "exit_code": 0,
    }


def plain_json(value: Any) -> Any:
    """The value with only JSON's own types: paths as text, not-a-number as null.

    Raises:
        TypeError: for a value that JSON has no form for.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain_json(item) for item in items]
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _write_json(value: Mapping[str, Any]) -> None:
    _write(json.dumps(plain_json(value), indent=2, ensure_ascii=False))


def _write_table(table: tables.TableLike) -> None:
    console = _console(sys.stdout)
    if not console.is_terminal:
        _write(tables.plain_table(table))
        return
    from rich import box
    from rich.table import Table

    headers, gap = tables.fit_headers(table, width=console.width)
    grid = Table(
        title=table.title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(table.columns),
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),
    )
    for header, numeric in zip(headers, tables.numeric_columns(table), strict=True):
        if numeric:
            grid.add_column(header, justify="right", no_wrap=True, min_width=len(header))
        else:
            grid.add_column(header, overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    needed = tables.least_width(table, headers, gap=gap)
    if needed > console.width:  # the terminal wraps the lines; no number is cut
        console = _console(sys.stdout, width=needed)
    console.print(grid)
    explained = tables.legend(table, headers, width=console.width)
    if explained:
        console.print(explained, style="dim")


def _write(text: str) -> None:
    """Print to standard output; a reader that went away (`| head`) is no failure of the work."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _console(stream: Any, *, width: int | None = None) -> Console:
    from rich.console import Console

    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
