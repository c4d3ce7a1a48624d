"""One writer for each run, and one for each version; the second is told who the first is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clmoe.errors import ClmoeError
from clmoe.events import Note, Progress, emit
from clmoe.runs import Node, Run, unreferenced
from tests.runs.fake_stages import make_run, perform

HOLD = """
import sys
from pathlib import Path
from clmoe.runs import Node, Run, base_identity
base_identity.TINY_FOLDER = Path(sys.argv[3])
run = Run.open(Path(sys.argv[1]), sys.argv[2])
with run.lock():
    if len(sys.argv) > 4:
        run.begin(Node("train", sys.argv[4]))
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()


def test_a_second_process_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    run = make_run(tmp_path)
    with other_process(str(tmp_path), "one", str(tiny_base)) as process:
        with pytest.raises(ClmoeError) as failure, run.lock():
            pass
        assert f"the run one is being written by process {process.pid} on" in str(failure.value)
        assert "-c" in str(failure.value)
        assert failure.value.hint == "wait for it to end, then run the same command again"
        with pytest.raises(ClmoeError, match="is being written"):
            run.set_overrides(["train.lr=1"])
        run.state(Node("prepare"))  # looking is free
    with run.lock(), Run.open(tmp_path, "one").lock():
        pass  # one process may nest it


def test_two_runs_do_not_make_the_same_version_at_once(tmp_path: Path, tiny_base: Path) -> None:
    one = make_run(tmp_path)
    perform(one, Node("prepare"))
    two = make_run(tmp_path, name="two")
    assert two.adopt(Node("prepare"))
    with (
        other_process(str(tmp_path), "one", str(tiny_base), "recognition") as process,
        pytest.raises(ClmoeError, match=f"version of train/01-recognition .* {process.pid} on"),
    ):
        two.begin(Node("train", "recognition"))
    assert two.begin(Node("train", "recognition")).resumed
    assert [item.path.name[:9] for item in unreferenced(tmp_path)] == []


def test_events_go_to_the_log_but_progress_does_not(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with run.lock(), run.lock():
        emit(Note("a word", level="warning"))
        emit(Progress("train", 1, 2))
    emit(Note("after"))
    log = run.files.log.read_text(encoding="utf-8").splitlines()
    assert len(log) == 1
    assert '"kind": "Note", "text": "a word", "level": "warning"' in log[0]


def test_many_processes_may_write_one_file(tmp_path: Path) -> None:
    """HEAD and the cache of digests belong to no run, so no lock guards them."""
    code = (
        "import sys, pathlib, clmoe.runs.atomic as a\n"
        "for i in range(200): a.write_text(pathlib.Path(sys.argv[1]), f'{i}\\n')"
    )
    path = tmp_path / "HEAD"
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[1] for process in running] == [b"", b"", b""]
    assert path.read_text() == "199\n"
    assert [found.name for found in tmp_path.iterdir()] == ["HEAD"]
