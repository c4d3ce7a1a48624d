"""Which runs of a runs directory belong to a study, and what varies between them.

`<runs>/.studies/<name>/study.json` is written by `clmoe study`; beside it lie the logs of runs that
had a process of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clmoe.errors import ClmoeError, UsageError, did_you_mean
from clmoe.runs.atomic import write_json

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as it was last started.

    Attributes:
        name: Its name.
        description: One line.
        recipe: Of all its runs: a shipped name or a file.
        keys: The recipe keys that vary.
        runs: Name of each run -> the value of each of these keys (as JSON; the whole order where
            the order of tasks is random), and `name` where the study gives the run one.
    """

    name: str
    description: str
    recipe: str
    keys: tuple[str, ...]
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def study_folder(runs_dir: Path, name: str) -> Path:
    """The folder of a study's record and logs."""
    return runs_dir.absolute() / ".studies" / name


def study_names(runs_dir: Path) -> list[str]:
    """The names of all studies of a runs directory, sorted."""
    return sorted(path.parent.name for path in (runs_dir / ".studies").glob("*/study.json"))


def study_runs(runs_dir: Path, name: str) -> list[tuple[str, dict[str, Any]]]:
    """The runs of a study in its order: (name of the run, value of each key that varies).

    A run that was not started yet has no folder in `runs_dir`.

    Args:
        runs_dir: The folder of all runs.
        name: The study's name, as `study_names` lists it.

    Raises:
        UsageError: There is no study of that name.
        ClmoeError: Its record cannot be read.
    """
    record = read_record(runs_dir, name)
    return [(run, dict(values)) for run, values in record.runs.items()]


def read_record(runs_dir: Path, name: str) -> StudyRecord:
    """The whole record of a study; raises as `study_runs` does."""
    names = study_names(runs_dir)
    if name not in names:
        known = f"; the studies are {', '.join(names)}" if names else ""
        raise UsageError(
            f"there is no study {name!r} in {runs_dir}{did_you_mean(name, names)}{known}",
            hint="clmoe study FILE",
        )
    path = study_folder(runs_dir, name) / "study.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if int(content["schema"]) > SCHEMA:
            raise ClmoeError(
                f"{path} was written by a newer version of clmoe",
                hint="pip install --upgrade clmoe",
            )
        return StudyRecord(
            name=content["name"],
            description=content["description"],
            recipe=content["recipe"],
            keys=tuple(content["keys"]),
            runs={run["run"]: run["values"] for run in content["runs"]},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClmoeError(
            f"{path} is damaged: {error!r}", hint="clmoe study FILE writes it again"
        ) from error


def write_record(runs_dir: Path, record: StudyRecord) -> Path:
    """Writes study.json at once, and returns its path."""
    folder = study_folder(runs_dir, record.name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.json"
    write_json(
        path,
        {
            "schema": SCHEMA,
            "name": record.name,
            "description": record.description,
            "recipe": record.recipe,
            "keys": list(record.keys),
            "runs": [{"run": run, "values": dict(values)} for run, values in record.runs.items()],
        },
    )
    return path
