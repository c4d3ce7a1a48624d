"""Collecting everything that is wrong with the data, so that it is reported in one go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from clmoe.errors import DataError

KEEP_GOING = "correct the data, or leave these questions out with --keep-going"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: `file:line`, `file` or `question 123`.
        what: What was found there and what was expected.
        record: The offending record, kept for `rejected.jsonl`.
        fatal: Whether a whole file is lost, so that going on without it makes no sense.
    """

    where: str
    what: str
    record: Any = None
    fatal: bool = False

    def __str__(self) -> str:
        """Return the line that people read."""
        return f"{self.where}: {self.what}"


class Problems:
    """A list of problems that grows while data are read and is raised at the end."""

    def __init__(self) -> None:
        """Start with no problems."""
        self._problems: list[Problem] = []

    def add(self, where: str, what: str, *, record: Any = None, fatal: bool = False) -> None:
        """Note one problem; see `Problem` for the arguments."""
        self._problems.append(Problem(where, what, record, fatal))

    def __len__(self) -> int:
        """Return how many problems there are."""
        return len(self._problems)

    def raise_if_any(self, *, limit: int, keep_going: bool) -> None:
        """Raise what was collected, or return when there is nothing or we may go on.

        Args:
            limit: How many problems the error lists; the total is always stated.
            keep_going: Go on without the bad records, unless a whole file could not be read.

        Raises:
            DataError: With the first `limit` problems.
        """
        found = self._problems
        if keep_going:
            found = [problem for problem in found if problem.fatal]
        if not found:
            return
        plural = "problem" if len(found) == 1 else "problems"
        shown = found[:limit]
        rest = f"; the first {len(shown)} are listed" if len(shown) < len(found) else ""
        hint = None if any(problem.fatal for problem in found) else KEEP_GOING
        raise DataError(
            f"{len(found):,} {plural} in the data{rest}",
            problems=[str(problem) for problem in shown],
            hint=hint,
        )

    def write_rejected(self, path: Path) -> None:
        """Write one JSON object a line: `where`, `what` and the record itself."""
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for problem in self._problems:
                entry = {"where": problem.where, "what": problem.what, "record": problem.record}
                file.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")


def require_paths(source: str, paths: Sequence[Path], *, expected: str) -> None:
    """Raise one error that names every path that is not there.

    Args:
        source: Name of the source, for the message.
        paths: Files and folders that must exist.
        expected: A sentence that says what the source's files are officially called.

    Raises:
        DataError: Some are missing.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        plural = "is" if len(missing) == 1 else "are"
        raise DataError(
            f"{len(missing)} of the {len(paths)} files and folders that {source} needs {plural}"
            " missing",
            problems=[f"{path}: missing" for path in missing],
            hint=expected,
        )


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return ` (did you mean x?)` for the known name nearest to `name`, else an empty string."""
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def type_name(value: Any) -> str:
    """Name a value parsed from JSON as JSON does: `an object`, `a list`, `a number`, `null`."""
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        dict: "an object",
        list: "a list",
        str: "a string",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), f"a {type(value).__name__}")
