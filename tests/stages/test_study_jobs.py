"""Running the runs of a study at once, with small programs in place of `clmoe run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from clmoe.errors import ClmoeError
from clmoe.events import Event, Note, Progress, subscribe
from clmoe.stages.study_jobs import (
    Ended,
    Progression,
    Queue,
    run_here,
    run_in_processes,
    shared_threads,
)

PROGRAMS = {
    "good": "pass",
    "says": "import json; print(json.dumps({'error': 'no\\nluck'})); raise SystemExit(4)",
    "silent": "import sys; print('half a {'); sys.stderr.write('why'); sys.exit(3)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "last": "import os; assert int(os.environ['OMP_NUM_THREADS']) >= 1",
}


def command(name: str) -> Sequence[str]:
    return [sys.executable, "-c", PROGRAMS[name]]


class TestQueue:
    """What starts next waits least for what is running."""

    def test_one_at_a_time_keeps_the_order(self) -> None:
        queue = Queue({"a": {"1", "2"}, "b": {"1"}, "c": {"3"}})
        taken = []
        while (name := queue.take()) is not None:
            taken.append(name)
            queue.end(name, done=True)
        assert taken == ["a", "b", "c"]

    def test_runs_with_other_trainings_come_first(self) -> None:
        """clmoe and mmoe share all, rmoe shares two with them, another seed shares nothing."""
        family = {f"s0/{t}" for t in range(1, 11)}
        queue = Queue(
            {
                "clmoe-0": set(family),
                "mmoe-0": set(family),
                "rmoe-0": {"s0/1", "s0/2", *(f"r/{t}" for t in range(3, 11))},
                "clmoe-1": {f"s1/{t}" for t in range(1, 11)},
            }
        )
        assert [queue.take() for _ in range(5)] == ["clmoe-0", "clmoe-1", "rmoe-0", "mmoe-0", None]

    def test_what_is_trained_is_waited_for_no_more(self) -> None:
        queue = Queue({"a": {"1", "2"}, "b": {"2", "3"}, "c": {"1", "3"}, "d": {"3"}})
        assert (queue.take(), queue.take()) == ("a", "d")
        queue.end("a", done=True)
        assert queue.needs == {"b": {"3"}, "c": {"3"}, "d": {"3"}}
        queue.end("d", done=False)
        assert queue.needs == {"b": {"3"}, "c": {"3"}}


def ended(result: Sequence[Ended]) -> dict[str, str | None]:
    return {end.run: end.problem for end in result}


def test_failures_do_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen: list[Event] = []
    with subscribe(seen.append):
        result = run_in_processes(
            Queue({name: set() for name in PROGRAMS}),
            jobs=2,
            command=command,
            logs=tmp_path,
            progression=Progression("x", total=6, finished=1),
        )
    assert ended(result) == {
        "good": None,
        "says": f"no luck (see {tmp_path / 'says.log'})",
        "silent": f"exit code 3 (see {tmp_path / 'silent.log'})",
        "killed": f"killed by SIGKILL (see {tmp_path / 'killed.log'})",
        "last": None,
    }
    assert (tmp_path / "silent.log").read_text() == "why"
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert notes[:2] == ["good: run 2 of 6 started", "says: run 3 of 6 started"]
    assert any(note.startswith("killed: failed: killed by SIGKILL") for note in notes)
    last = [event for event in seen if isinstance(event, Progress)][-1]
    assert (last.label, last.done, last.total, last.note) == (
        "study x",
        6,
        6,
        "0 running, 3 failed",
    )


def test_two_run_at_once(tmp_path: Path) -> None:
    """Each waits for the other's file, so one after the other would never end."""
    program = (
        "import pathlib, sys, time; here = pathlib.Path(sys.argv[1]);"
        "(here / sys.argv[2]).touch(); end = time.monotonic() + 20\n"
        "while not (here / sys.argv[3]).exists(): assert time.monotonic() < end; time.sleep(0.01)"
    )
    result = run_in_processes(
        Queue({"a": set(), "b": set()}),
        jobs=2,
        command=lambda n: [
            sys.executable,
            "-c",
            program,
            str(tmp_path),
            n,
            "b" if n == "a" else "a",
        ],
        logs=tmp_path / "logs",
        progression=Progression("x", total=2, finished=0),
    )
    assert ended(result) == {"a": None, "b": None}


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    shares = [shared_threads(jobs)["OMP_NUM_THREADS"] for jobs in (1, 2, 3, 16)]
    assert shares == ["8", "4", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert shared_threads(2) == {}


def test_in_this_process_failures_do_not_stop_the_others(tmp_path: Path) -> None:
    done: list[str] = []

    def work(name: str) -> None:
        if name == "a":
            raise ClmoeError("no luck")
        if name == "b":
            raise ValueError("a defect")
        done.append(name)

    result = run_here(
        Queue({name: set() for name in "abc"}),
        work=work,
        logs=tmp_path / "logs",
        progression=Progression("x", total=3, finished=0),
    )
    assert done == ["c"]
    assert ended(result) == {
        "a": f"no luck (see {tmp_path / 'logs' / 'a.log'})",
        "b": f"unexpected ValueError('a defect') (see {tmp_path / 'logs' / 'b.log'})",
        "c": None,
    }
    assert "Traceback" in (tmp_path / "logs" / "b.log").read_text()


def test_an_interrupt_in_this_process_is_passed_on(tmp_path: Path) -> None:
    def work(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(
            Queue({"a": set()}),
            work=work,
            logs=tmp_path,
            progression=Progression("x", total=1, finished=0),
        )


SLEEPERS = """
import json, signal, sys
from pathlib import Path
from clmoe.stages.study_jobs import Progression, Queue, run_in_processes
child = '''
import os, sys, time, pathlib
path = pathlib.Path(sys.argv[1])
path.write_text(str(os.getpid()))
try:
    time.sleep(60)
except KeyboardInterrupt:
    path.write_text("interrupted")
    sys.exit(130)
'''
signal.signal(signal.SIGINT, signal.default_int_handler)
here = Path(sys.argv[1])
try:
    run_in_processes(
        Queue({name: set() for name in "abc"}), jobs=2,
        command=lambda name: [sys.executable, "-c", child, str(here / name)],
        logs=here / "logs", progression=Progression("x", total=3, finished=0),
    )
except BaseException as error:
    print(repr(error))
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "KeyboardInterrupt()"), (signal.SIGTERM, "ClmoeError('stopped by SIGTERM')")],
)
def test_an_interrupt_ends_all_children(tmp_path: Path, number: signal.Signals, said: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPERS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    children: list[int] = []
    while len(children) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
        files = [tmp_path / name for name in "ab" if (tmp_path / name).exists()]
        children = [int(text) for file in files if (text := file.read_text())]
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.strip()) == (130, said)
    assert [(tmp_path / name).read_text() for name in "ab"] == ["interrupted"] * 2
    assert not (tmp_path / "c").exists()
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
