"""What a run writes about itself: its recipe, its prepared tasks, and a log of events."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from clmoe.errors import ClmoeError, InputStageError
from clmoe.events import Event, Progress
from clmoe.recipe.load import ResolvedRecipe, resolve_text
from clmoe.runs.atomic import append_line, write_json, write_text
from clmoe.runs.layout import RunFiles

SCHEMA = 1


def now() -> str:
    """The time, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_about(files: RunFiles, *, name: str) -> None:
    """Writes run.json, once."""
    if not files.about.is_file():
        write_json(files.about, {"schema": SCHEMA, "name": name, "created": now()})


def check_about(files: RunFiles) -> None:
    """Refuses a run of a newer version of the program.

    Raises:
        ClmoeError: It is one, or run.json cannot be read.
    """
    try:
        schema = int(json.loads(files.about.read_text(encoding="utf-8"))["schema"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClmoeError(f"{files.about} cannot be read: {error}") from error
    if schema > SCHEMA:
        raise ClmoeError(
            f"{files.folder.name} was made by a newer version of clmoe",
            hint="pip install --upgrade clmoe",
        )


def write_recipe(files: RunFiles, resolved: ResolvedRecipe) -> None:
    """Writes the recipe as given, the overrides, and (for people) every value resolved."""
    write_text(files.source, resolved.source_text)
    write_text(files.overrides, "".join(f"{line}\n" for line in resolved.overrides))
    values = resolved.recipe.model_dump(mode="json")
    dumped = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_text(files.recipe, f"# every value, resolved; edit nothing here\n{dumped}")


def read_recipe(files: RunFiles) -> ResolvedRecipe:
    """The recipe of a run, from what was given and the overrides.

    Raises:
        UsageError: With every problem of an edited file.
        ClmoeError: A file is gone.
    """
    try:
        text = files.source.read_text(encoding="utf-8")
        overrides = files.overrides.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ClmoeError(f"the run {files.folder.name} cannot be opened: {error}") from error
    return resolve_text(text, origin=str(files.source), overrides=overrides)


def prepared_tasks(source: Path) -> tuple[str, ...]:
    """The tasks of prepared data in their default order, from its source.json.

    Raises:
        InputStageError: The file is gone or damaged.
    """
    try:
        return tuple(json.loads(source.read_text(encoding="utf-8"))["tasks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputStageError(
            f"the prepared data is damaged: {source}: {error}", hint="clmoe prepare"
        ) from error


def log(files: RunFiles, kind: str, **fields: Any) -> None:
    """Adds a line to log.jsonl."""
    append_line(files.log, json.dumps({"time": now(), "kind": kind, **fields}, ensure_ascii=False))


def log_event(files: RunFiles, event: Event) -> None:
    """Adds an event to log.jsonl; progress is not kept."""
    if not isinstance(event, Progress):
        log(files, type(event).__name__, **asdict(event))
