"""Running the runs of a study: one after another in this process, or several in their own.

A run that fails does not stop the others. Which one starts next is decided by what it would wait
for: two runs that need the same training wait for each other, two that need different ones do not.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from clmoe.errors import ClmoeError
from clmoe.events import Note, Progress, emit
from clmoe.stages.study_estimate import spent

POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Ended:
    """What became of one run: `problem` says why it failed, None that it is done."""

    run: str
    seconds: float
    problem: str | None = None


@dataclass
class Queue:
    """Runs that wait, and the trainings that each would make or wait for.

    Attributes:
        needs: Name of each run, in the order of the study -> identities of its trainings that the
            store does not have.
    """

    needs: dict[str, set[str]]
    running: list[str] = field(default_factory=list)

    def take(self) -> str | None:
        """Starts the run that shares least with those that are running; the first of equals."""
        waiting = [name for name in self.needs if name not in self.running]
        if not waiting:
            return None
        busy = set[str]().union(*(self.needs[name] for name in self.running))
        chosen = min(waiting, key=lambda name: len(self.needs[name] & busy))
        self.running.append(chosen)
        return chosen

    def end(self, name: str, *, done: bool) -> None:
        """Takes a run out; what a finished one trained, nobody needs any more."""
        self.running.remove(name)
        made = self.needs.pop(name)
        if done:
            for needed in self.needs.values():
                needed -= made


class Progression:
    """Tells how far a study is, as events."""

    def __init__(self, study: str, *, total: int, finished: int) -> None:
        """`finished` runs were up to date before."""
        self._label = f"study {study}"
        self._total = total
        self._over = finished
        self._failed = 0
        self._running: list[str] = []

    def started(self, run: str) -> None:
        """A run began."""
        self._running.append(run)
        number = self._over + len(self._running)
        emit(Note(f"{run}: run {number} of {self._total} started"))
        self._show()

    def ended(self, ended: Ended) -> None:
        """A run is done or failed."""
        self._running.remove(ended.run)
        self._over += 1
        if ended.problem is None:
            emit(Note(f"{ended.run}: done in {spent(ended.seconds)}"))
        else:
            self._failed += 1
            emit(Note(f"{ended.run}: failed: {ended.problem}", level="warning"))
        self._show()

    def _show(self) -> None:
        note = f"{len(self._running)} running" + (f", {self._failed} failed" * bool(self._failed))
        emit(Progress(self._label, self._over, self._total, note))


def run_here(
    queue: Queue, *, work: Callable[[str], None], logs: Path, progression: Progression
) -> list[Ended]:
    """Runs one after another in this process; the traceback of a failure goes to its log."""
    ended = []
    while (name := queue.take()) is not None:
        progression.started(name)
        began = time.monotonic()
        problem = None
        try:
            work(name)
        except Exception as error:
            log = logs / f"{name}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")
            said = error.message if isinstance(error, ClmoeError) else f"unexpected {error!r}"
            problem = f"{said} (see {log})"
        gc.collect()  # a model that only cycles keep alive would lie beside the next
        ended.append(Ended(name, time.monotonic() - began, problem))
        queue.end(name, done=problem is None)
        progression.ended(ended[-1])
    return ended


def run_in_processes(
    queue: Queue,
    *,
    jobs: int,
    command: Callable[[str], Sequence[str]],
    logs: Path,
    progression: Progression,
) -> list[Ended]:
    """Runs `jobs` at once, each in a process with its share of the cores.

    Whatever stops this function (Ctrl-C, SIGTERM) interrupts every process that it started, and
    kills those that have not ended half a minute later.

    Args:
        queue: What to run.
        jobs: How many at once.
        command: The command line of a run; `--json` makes it say why it failed.
        logs: Folder of the processes' standard error.
        progression: Is told when a run starts and ends.
    """
    ended: list[Ended] = []
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **shared_threads(jobs)}
    running: list[_Process] = []
    try:
        with _stopped_by_sigterm():
            while True:
                while len(running) < jobs and (name := queue.take()) is not None:
                    running.append(_Process(name, command(name), logs, environment))
                    progression.started(name)
                if not running:
                    return ended
                time.sleep(POLL_SECONDS)
                for process in [p for p in running if p.ended()]:
                    running.remove(process)
                    ended.append(process.result())
                    queue.end(process.run, done=ended[-1].problem is None)
                    progression.ended(ended[-1])
    finally:
        _stop(running)


def shared_threads(jobs: int) -> Mapping[str, str]:
    """The variable that gives each process its share of the cores, unless it is set already."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"OMP_NUM_THREADS": str(max(1, (cores or 1) // jobs))}


class _Process:
    """A run in a process of its own; it hears no Ctrl-C but the one that is passed on to it."""

    def __init__(
        self, run: str, command: Sequence[str], logs: Path, environment: Mapping[str, str]
    ) -> None:
        self.run = run
        self._log = logs / f"{run}.log"
        self._began = time.monotonic()
        self._out: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")
        with self._log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> Ended:
        """What became of it; only once it has ended."""
        code = self._process.wait()
        self._out.seek(0)
        said = self._out.read()
        self._out.close()
        seconds = time.monotonic() - self._began
        if code == 0:
            return Ended(self.run, seconds)
        if code < 0:
            why = f"killed by {signal.Signals(-code).name}"
        else:
            why = _error(said) or f"exit code {code}"
        return Ended(self.run, seconds, f"{why} (see {self._log})")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process and those that it started, if it is still there."""
        if not self.ended():
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float) -> None:
        """Waits for its end; subprocess.TimeoutExpired after so many seconds."""
        self._process.wait(timeout=max(0.0, seconds))

    def close(self) -> None:
        self._out.close()


def _error(said: str) -> str | None:
    try:
        return str(json.loads(said)["error"]).replace("\n", " ")
    except (ValueError, KeyError, TypeError):
        return None


def _stop(running: Iterable[_Process]) -> None:
    """Interrupts processes, so that they leave what they made in order; then kills the rest."""
    left = list(running)
    try:
        for process in left:
            process.send(signal.SIGINT)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in left:
            process.wait(deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in left:
            process.send(signal.SIGKILL)
            process.wait(GRACE_SECONDS)
            process.close()


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM becomes an error of this process, which then ends those that it started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        raise ClmoeError("stopped by SIGTERM", hint="run the same command again")

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
