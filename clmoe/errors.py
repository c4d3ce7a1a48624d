"""The errors a user can meet: a message, a hint and an exit code each.

Anything else that is raised is a defect of the program. The library never exits; `clmoe_cli`
turns these into text on standard error and an exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ClmoeError(Exception):
    """Something failed in a way the user can understand.

    Attributes:
        message: What happened, as one or more sentences.
        hint: What to do about it (often a command), or None.
        exit_code: The exit code of the command line program.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keeps the message and the hint."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message alone; the hint is shown apart."""
        return self.message


class BusyError(ClmoeError):
    """Another process is writing what this one wants to write."""


class UsageError(ClmoeError):
    """The command or the recipe asks for something that cannot be (exit 2)."""

    exit_code = 2


class InputStageError(ClmoeError):
    """An input stage is missing, stale or damaged; the hint is the command to run (exit 3)."""

    exit_code = 3


class DataError(ClmoeError):
    """The data is bad (exit 4).

    Attributes:
        problems: One line each, such as `file:line: what` or `question 12: what`.
    """

    exit_code = 4

    def __init__(
        self, message: str, *, hint: str | None = None, problems: Sequence[str] = ()
    ) -> None:
        """Keeps the message, the hint and the problems."""
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class MemoryExhaustedError(ClmoeError):
    """The device ran out of memory; the message has the measured peak (exit 5)."""

    exit_code = 5


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the option nearest to `word`, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
