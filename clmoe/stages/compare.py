"""`clmoe compare`: runs, or the runs of a study, side by side. It only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clmoe.errors import ClmoeError, InputStageError, UsageError, did_you_mean
from clmoe.evaluation.samples import Sample, read_samples
from clmoe.events import Note, emit
from clmoe.metrics.answer_accuracy import get_scorer
from clmoe.recipe.keys import keys
from clmoe.reporting.compare import Comparison
from clmoe.reporting.compare import compare as side_by_side
from clmoe.reporting.compare_files import data, form_of, render
from clmoe.reporting.compare_tables import notes, paper_side, tables
from clmoe.reporting.compared_run import ComparedRun
from clmoe.reporting.measured import Measured, outdated_reason
from clmoe.runs.atomic import write_text
from clmoe.runs.layout import Layout
from clmoe.runs.manifest import Manifest
from clmoe.runs.run import Run
from clmoe.runs.study_record import study_names, study_runs
from clmoe.stages.report import measure
from clmoe.stages.result import Result

_SHOWN = 3


@dataclass(frozen=True)
class _Chosen:
    """Names of runs; those of a study may be left out where they are not finished."""

    names: tuple[str, ...]
    optional: frozenset[str]
    studies: tuple[str, ...]
    absent: tuple[str, ...]


def compare(
    runs_dir: Path,
    *,
    names: Sequence[str],
    baseline: str | None,
    scorer: str | None,
    paper: str,
    form: str | None,
    out: Path | None,
    figures: Path | None,
) -> Result:
    """Put runs beside each other, those that differ in the seed alone as one.

    Args:
        runs_dir: The folder of all runs.
        names: Runs, or studies: all finished runs of a study.
        baseline: What differences are taken to: a run, a method or a label; None: the first run.
        scorer: The scorer; None: the one of the first run's recipe.
        paper: The paper's numbers to show: ``llava``, ``all`` or ``none``.
        form: ``table``, ``csv``, ``markdown``, ``latex`` or ``json``; None: by the suffix of
            ``out``, else ``table``.
        out: A file to write instead of printing the text.
        figures: A folder for figures.

    Raises:
        UsageError: There is no run or study of that name, or the runs cannot be compared.
        InputStageError: A run that was named has no complete row, or later rows are stale.
    """
    chosen_form = form or ("table" if out is None else form_of(out.suffix))
    if out is not None and chosen_form == "table":
        raise UsageError(
            "a table is for the terminal", hint="give --format csv, markdown, latex or json"
        )
    chosen = _choose(runs_dir, names)
    opened = [Run.open(runs_dir, name) for name in chosen.names]
    runs, told = _read(opened, chosen, scorer=scorer or opened[0].recipe.report.scorer)
    settings = opened[0].recipe.report
    comparison = side_by_side(
        runs,
        baseline=baseline,
        references=_references(runs_dir, runs, studies=chosen.studies),
        resamples=settings.resamples,
        seed=settings.seed,
    )
    side = paper_side(comparison, which=paper)
    written: tuple[Path, ...] = ()
    if figures is not None:
        written = _figures(comparison, figures)
        names = ", ".join(dict.fromkeys(path.stem for path in written))
        told.append(f"figures, as PNG and SVG: {names} in {figures}")
    content = data(comparison, paper=side)
    if chosen_form != "table":
        text = render(comparison, paper=side, form=chosen_form)
        if out is None:
            for line in told:  # standard output is the text alone
                emit(Note(line))
            return Result(command="compare", data=content, notes=(text.rstrip("\n"),))
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
        told.append(f"{chosen_form} written to {out}")
    return Result(
        command="compare",
        tables=tables(comparison, paper=side),
        data={**content, "figures": [str(path) for path in written]},
        notes=(*notes(comparison, paper=side), *told),
    )


def _read(
    opened: Sequence[Run], chosen: _Chosen, *, scorer: str
) -> tuple[list[ComparedRun], list[str]]:
    """The runs that are compared, and which runs of a study are left out and why."""
    told = [f"left out {name}: not started yet" for name in chosen.absent]
    runs: list[ComparedRun] = []
    for run in opened:
        try:
            runs.append(read_run(run, scorer=scorer))
        except InputStageError as error:
            if run.name not in chosen.optional:
                raise InputStageError(f"{run.name}: {error.message}", hint=error.hint) from error
            told.append(f"left out {run.name}: {error.message}")
    if not runs:
        some = "; ".join(told[:_SHOWN]) + ("; ..." if len(told) > _SHOWN else "")
        raise InputStageError(f"no run of the study is finished: {some}", hint="clmoe study FILE")
    furthest = max(run.after for run in runs)
    behind = {r.name: r for r in runs if r.name in chosen.optional and r.after < furthest}
    told += [
        f"left out {name}: stands after {run.after} of {len(run.tasks)} tasks"
        for name, run in behind.items()
    ]
    return [run for run in runs if run.name not in behind], told


def _choose(runs_dir: Path, names: Sequence[str]) -> _Chosen:
    """What the names stand for: a run before a study of the same name."""
    runs, studies = Layout(runs_dir.absolute()).run_names(), study_names(runs_dir)
    found: list[str] = []
    optional: set[str] = set()
    chosen: list[str] = []
    absent: list[str] = []
    for name in names:
        if name in runs:
            found.append(name)
        elif name in studies:
            members = [run for run, _ in study_runs(runs_dir, name)]
            chosen.append(name)
            optional.update(members)
            found += [run for run in members if run in runs]
            absent += [run for run in members if run not in runs]
        else:
            known = [*runs, *studies]
            raise UsageError(
                f"there is no run and no study {name!r} in {runs_dir}{did_you_mean(name, known)}",
                hint=f"there are {', '.join(known)}" if known else "clmoe run shapes",
            )
    if not found:
        raise InputStageError(
            f"no run of the study {', '.join(chosen)} was started", hint="clmoe study FILE"
        )
    return _Chosen(tuple(found), frozenset(optional), tuple(chosen), tuple(absent))


def read_run(run: Run, *, scorer: str) -> ComparedRun:
    """What is compared of one run.

    Raises:
        InputStageError: No row of its matrix is complete, or a later row is only begun, stale or
            damaged.
        UsageError: The scorer is not defined for one of its questions.
    """
    measured = measure(run, scorer=scorer)
    row = measured.after
    _refuse_stale(run, measured)
    absent = [t for t in measured.seen if (row, t) not in measured.matrix.cells]
    if absent:
        undefined = next((why for (r, _), why in measured.undefined.items() if r == row), None)
        if undefined is not None:
            raise UsageError(f"{run.name} has no {scorer} accuracy: {undefined}")
        raise InputStageError(
            f"the row after {run.plan.tasks[row - 1]} lacks {', '.join(absent)}",
            hint=f"clmoe eval --run {run.name}",
        )
    identified = measured.identified
    cells = {task: run.plan.cell(row, task) for task in measured.seen}
    trainings = _trainings(run)
    told = [m.summary for m in trainings if "extra_bytes" in m.summary]
    most = max(told, key=lambda summary: int(summary["extra_bytes"]), default={})
    return ComparedRun(
        name=run.name,
        settings=result_settings(run),
        matrix=measured.matrix,
        after=row,
        scorer=scorer,
        scores={
            task: _scores(read_samples(run.output(cell, "samples")), scorer=scorer)
            for task, cell in cells.items()
        },
        data={task: _digest(run.manifest(cell)) for task, cell in cells.items()},
        identified=None if identified is None else identified.overall,
        parameters=max((m.counts["trainable_parameters"] for m in trainings), default=None),
        extra_bytes=most.get("extra_bytes"),
        extra=most.get("extra"),
    )


def _refuse_stale(run: Run, measured: Measured) -> None:
    """An earlier row never stands in for later ones that are out of date."""
    later = {row: cell for row, cell in measured.outdated.items() if row > measured.after}
    if later:
        raise InputStageError(outdated_reason(later), hint=f"clmoe status --run {run.name}")


def result_settings(run: Run) -> dict[str, Any]:
    """The values that change what was measured; how it is reported changes nothing of it."""
    flat, about = run.recipe.flat(), keys()
    return {
        key: value
        for key, value in flat.items()
        if about[key].stages and not key.startswith("report.")
    }


def _scores(samples: Sequence[Sample], *, scorer: str) -> dict[str, float]:
    score = get_scorer(scorer)
    found = {s.question_id: score(s.prediction, s.answer, s.answers).value for s in samples}
    return {key: value for key, value in found.items() if value is not None}


def _digest(manifest: Manifest) -> str:
    """Of the questions that a cell was asked."""
    return next(record.sha256 for record in manifest.inputs if record.role.startswith("data:"))


def _trainings(run: Run) -> list[Manifest]:
    return [
        run.manifest(state.node)
        for state in run.states()
        if state.node.stage == "train" and state.status == "fresh"
    ]


def _references(
    runs_dir: Path, runs: Sequence[ComparedRun], *, studies: Sequence[str]
) -> list[ComparedRun]:
    """Vanilla runs of the studies that the runs belong to, for AF-ref."""
    names = {run.name for run in runs}
    known = Layout(runs_dir.absolute()).run_names()
    found = []
    for study in study_names(runs_dir):
        members = [name for name, _ in study_runs(runs_dir, study)]
        if study not in studies and not names & set(members):
            continue
        for name in members:
            if name in names or name not in known:
                continue
            names.add(name)
            other = Run.open(runs_dir, name)
            if other.recipe.method.name == "vanilla":
                try:
                    found.append(read_run(other, scorer=runs[0].scorer))
                except ClmoeError:
                    continue  # not finished: it is no reference, and AF-ref says there is none
    return found


def _figures(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    from clmoe.reporting.curves import comparison_figures
    from clmoe.reporting.figures import save

    return tuple(
        path
        for name, figure in comparison_figures(comparison).items()
        for path in save(figure, folder=folder, name=name)
    )
