"""What went wrong, as a message, what to do about it, and an exit code."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import typer
from typer.exceptions import TyperException

from clmoe.errors import ClmoeError
from clmoe.parallel import failures as launched_failures
from clmoe.parallel.launch import LaunchedError

INTERRUPTED = 130
OUT_OF_MEMORY = 5


@dataclass(frozen=True)
class Failure:
    """A failed command: `problems` are the single bad places, each "file:line: what"."""

    message: str
    hint: str | None = None
    problems: tuple[str, ...] = ()
    exit_code: int = 1

    def as_json(self) -> dict[str, object]:
        """The object that `--json` prints for it."""
        return {
            "error": self.message,
            "hint": self.hint,
            "problems": list(self.problems),
            "exit_code": self.exit_code,
        }


@dataclass
class Interrupts:
    """Whether Ctrl-C was pressed."""

    happened: bool = False


def describe(error: BaseException) -> Failure:
    """Turn any exception of a command into what a person is told."""
    if isinstance(error, ClmoeError):
        problems = tuple(getattr(error, "problems", ()))
        return Failure(error.message, error.hint, problems, error.exit_code)
    if isinstance(error, TyperException):
        return Failure(_usage_message(error), _usage_hint(error), (), error.exit_code)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure(
            "interrupted; nothing lost: run the same command again", exit_code=INTERRUPTED
        )
    if isinstance(error, MemoryError):
        return Failure(
            "the machine ran out of memory",
            "a smaller train.micro_batch or eval.batch_size needs less",
            (),
            OUT_OF_MEMORY,
        )
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return Failure(f"{error.strerror}{where}", _traceback_hint())
    text = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    return Failure(f"unexpected {what}", _traceback_hint())


@contextmanager
def noticing_interrupts() -> Iterator[Interrupts]:
    """Remembers whether Ctrl-C was pressed: C extensions turn it into errors of their own."""
    seen = Interrupts()

    def handler(number: int, frame: FrameType | None) -> None:
        seen.happened = True
        signal.default_int_handler(number, frame)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, handler)
    try:
        yield seen
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def wants_traceback(error: BaseException) -> bool:
    """Whether CLMOE_DEBUG asks for the traceback of this error."""
    interrupted = isinstance(error, KeyboardInterrupt | typer.Abort)
    return os.environ.get("CLMOE_DEBUG", "") not in {"", "0"} and not interrupted


def hand_over(failure: Failure, error: BaseException) -> bool:
    """Leave the failure to the process that launched this one, where there is one."""
    if not launched_failures.collected():
        return False
    launched_failures.leave(
        failure.message,
        hint=failure.hint,
        problems=failure.problems,
        exit_code=failure.exit_code,
        traceback=traceback_text(error),
    )
    return True


def traceback_text(error: BaseException) -> str:
    """The traceback of an error, as Python writes it; that of a launched process is its own."""
    if isinstance(error, LaunchedError):
        return error.traceback
    return "".join(traceback.format_exception(error))


def _traceback_hint() -> str:
    command = shlex.join(["clmoe", *sys.argv[1:]])
    return f"CLMOE_DEBUG=1 {command}  shows the traceback"


def _usage_message(error: TyperException) -> str:
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    return message[:1].lower() + message[1:]


def _usage_hint(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "clmoe"
    return f"{command} --help"
