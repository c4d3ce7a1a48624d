"""What a run points at: `current.json`, and `history.jsonl` with every change of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from clmoe.errors import ClmoeError
from clmoe.runs import atomic
from clmoe.runs.layout import RunFiles

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Change:
    """One change of what is current; `version` counts them from 1 (v1, v2, ...)."""

    version: int
    time: str
    label: str
    fingerprint: str
    previous: str | None


def read_current(files: RunFiles) -> dict[str, str]:
    """Label of each node -> fingerprint of its current version; empty for a new run.

    Raises:
        ClmoeError: The file is damaged, or a newer version of the program wrote it.
    """
    if not files.current.is_file():
        return {}
    try:
        stored = json.loads(files.current.read_text(encoding="utf-8"))
        schema, current = int(stored["schema"]), dict(stored["current"])
    except (ValueError, KeyError, TypeError) as error:
        raise ClmoeError(
            f"{files.current} is damaged: {error}",
            hint="remove it: the next command finds the versions in the store again",
        ) from error
    if schema > SCHEMA:
        raise ClmoeError(
            f"{files.current} was written by a newer version of clmoe",
            hint="pip install --upgrade clmoe",
        )
    return current


def point(files: RunFiles, *, label: str, fingerprint: str) -> dict[str, str]:
    """Makes a version current, notes it in the history, and returns all that is current.

    Killed between the two, the history is completed at the next call.
    """
    current = {**read_current(files), label: fingerprint}
    atomic.write_json(files.current, {"schema": SCHEMA, "current": current})
    complete_history(files, current=current)
    atomic.step("history appended")
    return current


def complete_history(files: RunFiles, *, current: dict[str, str]) -> None:
    """Appends what is current but not yet in the history."""
    changes = read_history(files)
    known = {change.label: change.fingerprint for change in changes}
    version = changes[-1].version if changes else 0
    for label, fingerprint in current.items():
        if known.get(label) != fingerprint:
            version += 1
            time = datetime.now(UTC).isoformat(timespec="seconds")
            change = Change(version, time, label, fingerprint, known.get(label))
            atomic.append_line(files.history, json.dumps(asdict(change), ensure_ascii=False))


def read_history(files: RunFiles) -> list[Change]:
    """Every change, the oldest first; half a line that a kill left at the end is not one."""
    if not files.history.is_file():
        return []
    text = files.history.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [Change(**json.loads(line)) for line in whole.splitlines()]
