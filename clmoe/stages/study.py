"""`clmoe study`: every run of a study file, sharing whatever is equal.

Each cell is an ordinary run. This module decides nothing about stages: it counts what there is to
do, starts the runs that are not finished, and writes down which runs belong together.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from clmoe.errors import ClmoeError, UsageError
from clmoe.events import Note, emit
from clmoe.recipe.load import ResolvedRecipe
from clmoe.recipe.study import Study
from clmoe.recipe.study_cells import Cell, load_study, study_cells
from clmoe.runs.atomic import write_text
from clmoe.runs.layout import Layout
from clmoe.runs.lock import hold
from clmoe.runs.run import Run
from clmoe.runs.study_record import (
    StudyRecord,
    read_record,
    study_folder,
    study_names,
    write_record,
)
from clmoe.stages.result import Result, Table
from clmoe.stages.study_estimate import estimate
from clmoe.stages.study_jobs import Ended, Progression, Queue, run_here, run_in_processes
from clmoe.stages.study_plan import CellWork, Tasks, count, final_metrics, look_at

METRICS = ("AP", "AF")
PROGRAM = "clmoe_cli"


class StudyError(ClmoeError):
    """Some runs of a study failed (exit 1).

    Attributes:
        problems: One line for each of them.
    """

    def __init__(self, message: str, *, hint: str, problems: Sequence[str]) -> None:
        """Keeps the message, the hint and the problems."""
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


def study(
    runs_dir: Path,
    *,
    source: str,
    overrides: Sequence[str],
    dry_run: bool,
    print_commands: bool,
    jobs: int,
) -> Result:
    """Do every run of a study that is not finished.

    Args:
        runs_dir: The folder of all runs.
        source: A shipped study's name or a file.
        overrides: KEY=VALUE for every run; keys that vary in the study cannot be given.
        dry_run: Only count runs and trainings, and estimate the time.
        print_commands: Only give the command of each run.
        jobs: Runs at once; more than one get a process each.

    Raises:
        UsageError: With every problem of the file; or a run of such a name is not the study's.
        InputStageError: Only the prepared data tells which tasks there are (not where it runs).
        StudyError: Some runs failed; the others are done.
    """
    loaded = load_study(source, overrides=overrides)
    layout = Layout(runs_dir.absolute())
    look_only = dry_run or print_commands
    with _current_run_kept(layout):
        prepare = None if look_only else partial(_prepare, layout.root, loaded)
        tasks_of = Tasks(runs_dir, prepare=prepare)
        cells = study_cells(loaded, tasks_of=tasks_of, overrides=overrides)
        _refuse_other_runs(layout, loaded, cells)
        if print_commands:
            _record(layout, loaded, cells)
            return _commands(loaded, cells)
        works = look_at(runs_dir, cells, tasks_of=tasks_of)
        if dry_run:
            again = ["clmoe", "study", source, *overrides, *(["--jobs", str(jobs)] * (jobs > 1))]
            return _forecast(layout, loaded, works, jobs=jobs, following=shlex.join(again))
        folder = study_folder(layout.root, loaded.name)
        with hold(folder / ".lock", what=f"the study {loaded.name}"):
            _record(layout, loaded, cells)
            ended = _run(layout, loaded, works, jobs=jobs)
    return _result(layout, loaded, cells, ended)


def _run(layout: Layout, loaded: Study, works: Sequence[CellWork], *, jobs: int) -> list[Ended]:
    left = {work.cell.run: work for work in works if not work.finished}
    finished = len(works) - len(left)
    if finished:
        emit(Note(f"skipped {finished} of {len(works)} runs: they are finished"))
    stored = frozenset[str]().union(*(work.stored for work in works))
    queue = Queue({name: set(work.trainings()) - stored for name, work in left.items()})
    progression = Progression(loaded.name, total=len(works), finished=finished)
    logs = study_folder(layout.root, loaded.name) / "logs"
    cells = {name: work.cell for name, work in left.items()}
    if jobs == 1:
        from clmoe.stages import pipeline  # which has this module's `study`

        def work(name: str) -> None:
            pipeline.run(
                layout.root, recipe=loaded.recipe, overrides=cells[name].overrides, name=name,
                dry_run=False, keep_going=False,
            )  # fmt: skip

        return run_here(queue, work=work, logs=logs, progression=progression)

    def command(name: str) -> list[str]:
        words = _words(loaded, cells[name])
        return [sys.executable, "-m", PROGRAM, "--runs", str(layout.root), *words, "--json"]

    return run_in_processes(queue, jobs=jobs, command=command, logs=logs, progression=progression)


def _words(loaded: Study, cell: Cell) -> list[str]:
    return ["run", loaded.recipe, "--name", cell.run, *cell.overrides]


def _commands(loaded: Study, cells: Sequence[Cell]) -> Result:
    commands = [shlex.join(["clmoe", *_words(loaded, cell)]) for cell in cells]
    return Result(
        command="study",
        data={"study": loaded.name, "commands": commands},
        notes=tuple(commands),
    )


def _forecast(
    layout: Layout, loaded: Study, works: Sequence[CellWork], *, jobs: int, following: str
) -> Result:
    counts = count(works)
    trainings = counts.distinct - counts.stored
    guess = estimate(layout.root, counts.todo.values())
    rows = []
    for work, new in zip(works, counts.new, strict=True):
        done = sum(identity in work.stored for identity in work.identity.values())
        state = "finished" if work.finished else f"{done} of {len(work.identity)} stages stored"
        rows.append([work.cell.run, str(len(work.trainings())), str(new), state])
    finished = sum(work.finished for work in works)
    return Result(
        command="study",
        tables=(Table(f"study {loaded.name}", ["run", "trainings", "new", "state"], rows),),
        data={
            "study": loaded.name,
            "runs": [
                {"run": work.cell.run, "values": work.cell.values, "finished": work.finished,
                 "trainings": len(work.trainings()), "new": new}
                for work, new in zip(works, counts.new, strict=True)
            ],
            "trainings": {
                "all": counts.trainings, "distinct": counts.distinct, "stored": counts.stored,
                "to_do": trainings,
            },
            "seconds": {
                "training": guess.training, "others": guess.others, "measured": guess.measured,
            },
        },
        notes=(
            f"{len(works)} runs, {finished} finished",
            f"{counts.trainings} trainings, {counts.distinct} of them different, "
            f"{counts.stored} in the store: {trainings} to do",
            guess.text(jobs=jobs) if counts.todo else "time: nothing is left to compute",
        ),
        next_command=following,
    )  # fmt: skip


def _result(layout: Layout, loaded: Study, cells: Sequence[Cell], ended: Sequence[Ended]) -> Result:
    failed = [end for end in ended if end.problem is not None]
    if failed:
        raise StudyError(
            f"{len(failed)} of {len(cells)} runs of the study {loaded.name} failed; "
            f"{len(cells) - len(failed)} are done",
            hint="run the same command again: finished runs are skipped",
            problems=[f"{end.run}: {end.problem}" for end in failed],
        )
    worked = {end.run: end for end in ended}
    rows, runs = [], []
    for cell in cells:
        metrics = final_metrics(layout.root, cell.run, METRICS)
        state = "done" if cell.run in worked else "skipped"
        shown = ["-" if value is None else f"{value:.1f}" for value in metrics.values()]
        rows.append([cell.run, state, *shown])
        runs.append(
            {"run": cell.run, "values": cell.values, "state": state, "metrics": metrics}
            | ({"seconds": round(worked[cell.run].seconds, 3)} if cell.run in worked else {})
        )
    return Result(
        command="study",
        tables=(Table(f"study {loaded.name}", ["run", "state", *METRICS], rows),),
        data={"study": loaded.name, "runs": runs},
        next_command=f"clmoe compare {loaded.name}",
    )


def _record(layout: Layout, loaded: Study, cells: Sequence[Cell]) -> None:
    runs: Mapping[str, Mapping[str, Any]] = {cell.run: cell.values for cell in cells}
    record = StudyRecord(loaded.name, loaded.description, loaded.recipe, loaded.keys, runs)
    write_record(layout.root, record)


def _prepare(root: Path, loaded: Study, resolved: ResolvedRecipe, name: str) -> None:
    """Prepare the data of a run, because only the data tells its tasks."""
    from clmoe.stages import pipeline  # which has this module's `study`

    pipeline.prepare(
        root, recipe=loaded.recipe, source=None, overrides=resolved.overrides, name=name,
        keep_going=False,
    )  # fmt: skip


def _refuse_other_runs(layout: Layout, loaded: Study, cells: Sequence[Cell]) -> None:
    """No run that somebody made for another purpose is given a new recipe.

    Raises:
        UsageError: There are such runs.
    """
    ours: set[str] = set()
    if loaded.name in study_names(layout.root):
        ours = set(read_record(layout.root, loaded.name).runs)
    foreign = set(layout.run_names()) - ours
    others = [
        cell.run
        for cell in cells
        if cell.run in foreign and Run.open(layout.root, cell.run).recipe != cell.resolved.recipe
    ]
    if others:
        raise UsageError(
            f"{', '.join(others)}: there are such runs, with other recipes, and they are not of "
            f"the study {loaded.name}",
            hint="give the study another name",
        )


@contextmanager
def _current_run_kept(layout: Layout) -> Iterator[None]:
    """Bare commands go on acting on the run they acted on."""
    head = layout.head
    before = head.read_text(encoding="utf-8") if head.is_file() else None
    try:
        yield
    finally:
        if before is not None:
            write_text(head, before)
