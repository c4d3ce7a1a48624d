"""The commands as functions: each opens a run, brings stages up to date and says what it did.

Nothing here imports torch before a stage needs it, so `status` and `--dry-run` are quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from clmoe.errors import InputStageError, UsageError
from clmoe.events import Note, emit
from clmoe.runs.plan import Node
from clmoe.runs.run import Run
from clmoe.stages.audit import audit
from clmoe.stages.bench import bench_eval, bench_layer, bench_train
from clmoe.stages.catalogue import recipes_explain, recipes_list, recipes_show
from clmoe.stages.doctor import doctor
from clmoe.stages.estimate import estimate_seconds
from clmoe.stages.export import export_bundle
from clmoe.stages.foreign import import_adapter
from clmoe.stages.inspection import clean, show_plan, status, use
from clmoe.stages.opening import create_run, open_run
from clmoe.stages.refusals import (
    refuse_method,
    refuse_other_merges,
    refuse_processes,
    refuse_training,
)
from clmoe.stages.result import Outcome, Result, Table
from clmoe.stages.sequence import (
    between_trainings,
    newest_position,
    next_command,
    row_position,
    training_position,
)
from clmoe.stages.study import study

__all__ = [
    "Outcome", "Result", "Table", "audit", "bench_eval", "bench_layer", "bench_train", "clean",
    "compare", "doctor", "evaluate", "export_bundle",
    "import_adapter", "index", "merge", "prepare", "recipes_explain", "recipes_list",
    "recipes_show", "report", "route", "run", "status", "study", "train", "use",
]  # fmt: skip
ASK_ABOVE_SECONDS = 300.0
VQA_V2_COMMAND = "clmoe prepare --source vqa_v2 data.root=DIR"


def prepare(
    runs_dir: Path,
    *,
    recipe: str | None,
    source: str | None,
    overrides: Sequence[str],
    name: str | None,
    keep_going: bool,
) -> Result:
    """Make or reopen a run, prepare its data, and make it the current run.

    Args:
        runs_dir: The folder of all runs.
        recipe: A shipped recipe's name or a file; None: the one named like the source, or the
            default.
        source: A data source; shorthand for ``data.source``.
        overrides: KEY=VALUE, the last of a key holds.
        name: The run's name; None: the recipe's.
        keep_going: Leave bad questions out instead of stopping.
    """
    bare = recipe is None and source is None
    opened = create_run(
        runs_dir, recipe=recipe, source=source, overrides=overrides, name=name,
        keep_going=keep_going,
    )  # fmt: skip
    with opened.lock():
        opened.make_current()
        outcome = _prepare(opened)
        tasks = opened.tasks
    notes = [f"tasks in order: {', '.join(tasks)}"]
    if bare:
        notes.append(f"for VQA v2 on your disk: {VQA_V2_COMMAND}")
    following = f"clmoe run {opened.recipe.name}" if opened.recipe.protocol.joint else None
    return Result(
        command="prepare",
        run=opened.name,
        outcomes=(outcome,),
        data={"tasks": list(tasks)},
        notes=tuple(notes),
        next_command=following or f"clmoe train --task {tasks[0]}",
    )


def train(
    runs_dir: Path,
    *,
    run: str | None,
    task: str | None,
    overrides: Sequence[str],
    again: bool,
    yes: bool,
) -> Result:
    """Train the task that is due (or all at once, where ``protocol.joint`` is on).

    Raises:
        UsageError: Another task is due, or an earlier one would be retrained without ``again``.
    """

    def refuse(opened: Run) -> None:
        refuse_training(opened, task=task, again=again)

    with open_run(runs_dir, run=run, overrides=overrides, refuse=refuse) as (context, notes):
        opened, plan = context.run, context.run.plan
        if plan.recipe.protocol.joint:
            only = (_bring(context, plan.train(0)),)
            return _result("train", opened, only, notes, "clmoe eval --report ap-af")
        place = training_position(opened, task)
        outcomes = _upstream(context, between_trainings(plan, place - 1, gates=False), yes=yes)
        outcomes += (_bring(context, plan.train(place)),)
        following = "clmoe merge" if plan.merges else "clmoe eval --report ap-af"
        return _result("train", opened, outcomes, notes, following)


def route(runs_dir: Path, *, run: str | None, task: str | None, overrides: Sequence[str]) -> Result:
    """Compute the task router of the newest trained task, or of a given one."""
    return _one_stage("route", runs_dir, run=run, task=task, overrides=overrides)


def merge(runs_dir: Path, *, run: str | None, task: str | None, overrides: Sequence[str]) -> Result:
    """Merge the newest trained task, or a given one, into the tasks before it."""
    return _one_stage(
        "merge", runs_dir, run=run, task=task, overrides=overrides, refuse=refuse_other_merges
    )


def index(runs_dir: Path, *, run: str | None, task: str | None, overrides: Sequence[str]) -> Result:
    """Compute the task index of the newest trained task, or of a given one."""
    return _one_stage("index", runs_dir, run=run, task=task, overrides=overrides)


def evaluate(
    runs_dir: Path,
    *,
    run: str | None,
    after: str | None,
    tasks: str,
    report: str,
    oracle_task: bool | None,
    overrides: Sequence[str],
    yes: bool,
) -> Result:
    """Fill one row of the accuracy matrix.

    Args:
        runs_dir: The folder of all runs.
        run: The run; None: the current one.
        after: The newest task learned, or ``base`` for row 0; None: the newest trained.
        tasks: ``seen``: the tasks learned by then; ``all``: every task.
        report: Which metrics to show: ``ap-af``, ``all`` or ``none``.
        oracle_task: Use true task ids; None: as the recipe says.
        overrides: KEY=VALUE.
        yes: Bring earlier stages up to date however long that takes.
    """
    changes = [*overrides]
    if oracle_task is not None:
        changes.append(f"eval.oracle_task={str(oracle_task).lower()}")
    with open_run(
        runs_dir, run=run, overrides=changes, every_cell=tasks == "all"
    ) as (context, notes):  # fmt: skip
        opened, plan = context.run, context.run.plan
        place = row_position(opened, after)
        chosen = plan.tasks if tasks == "all" or place == 0 else plan.tasks[:place]
        outcomes: tuple[Outcome, ...] = ()
        if place and not plan.recipe.protocol.joint:
            outcomes = _upstream(context, between_trainings(plan, place, gates=True), yes=yes)
        outcomes += tuple(_bring(context, plan.cell(place, task)) for task in chosen)
        tables: tuple[Table, ...] = ()
        data: dict[str, Any] = {}
        if report != "none" and place:
            from clmoe.stages.report import measure

            measured = measure(opened, after=place)
            tables, data = measured.tables(kind=report), measured.data()
        return _result(
            "eval", opened, outcomes, notes, next_command(opened), tables=tables, data=data
        )


def report(
    runs_dir: Path,
    *,
    run: str | None,
    kind: str,
    overrides: Sequence[str],
    figures: bool = False,
) -> Result:
    """Write the matrix, its metrics and what happened inside; show them, with figures if asked."""
    from clmoe.stages.report import present

    with open_run(runs_dir, run=run, overrides=overrides) as (context, notes):
        opened = context.run
        outcome, tables, data, told = present(opened, kind=kind, figures=figures)
        return _result(
            "report", opened, (outcome,), [*notes, *told], next_command(opened),
            tables=tables, data=data,
        )  # fmt: skip


def compare(runs_dir: Path, **choices: Any) -> Result:
    """Put runs or a study side by side; see `clmoe.stages.compare.compare`."""
    from clmoe.stages.compare import compare as side_by_side

    return side_by_side(runs_dir, **choices)


def run(
    runs_dir: Path,
    *,
    recipe: str,
    overrides: Sequence[str],
    name: str | None,
    dry_run: bool,
    keep_going: bool,
) -> Result:
    """Do the whole sequence, skipping what is up to date; with ``dry_run`` only say what."""
    opened = create_run(
        runs_dir, recipe=recipe, source=None, overrides=overrides, name=name,
        keep_going=keep_going, keep=not dry_run, needs_base=not dry_run,
    )  # fmt: skip
    if dry_run:
        return show_plan(opened)
    with opened.lock():
        from clmoe.stages.context import Context

        opened.make_current()
        outcomes = [_prepare(opened)]
        refuse_method(opened)
        refuse_processes(opened)
        context = Context(opened)
        for node in opened.plan.nodes():
            if node.stage not in ("prepare", "report"):
                outcomes.append(_bring(context, node))
        from clmoe.stages.report import measure, write

        measured = measure(opened)
        outcomes.append(write(opened, measured))
        return _result(
            "run", opened, tuple(outcomes), [f"results are in {opened.path}"],
            f"clmoe report --run {opened.name} --report all",
            tables=measured.tables(kind="all"), data=measured.data(),
        )  # fmt: skip


def _prepare(opened: Run) -> Outcome:
    from clmoe.data.sources.registry import get_source
    from clmoe.stages.context import Context
    from clmoe.stages.engine import bring_up_to_date

    files = get_source(opened.recipe.data.source).required_files(opened.recipe.data)
    external = opened.external([path for path in files if path.is_file()])
    return bring_up_to_date(Context(opened), Node("prepare"), external=external)


def _one_stage(
    stage: str,
    runs_dir: Path,
    *,
    run: str | None,
    task: str | None,
    overrides: Sequence[str],
    refuse: Callable[[Run], None] = lambda run: None,
) -> Result:
    with open_run(runs_dir, run=run, overrides=overrides, refuse=refuse) as (context, notes):
        opened, plan = context.run, context.run.plan
        place = newest_position(opened) if task is None else row_position(opened, task)
        chosen = [node for node in plan.learning(place) if node.stage == stage]
        if not chosen:
            raise UsageError(
                f"this recipe has no {stage} stage: method.name is {plan.recipe.method.name}, "
                f"adapter.experts {plan.recipe.adapter.experts}, merge.rule "
                f"{plan.recipe.merge.rule}, eval.beta {plan.recipe.eval.beta:g}",
                hint="clmoe recipes explain method.name",
            )
        outcomes: tuple[Outcome, ...] = ()
        if stage == "merge":
            before = [
                node
                for node in between_trainings(plan, place, gates=False)
                if node.label != chosen[0].label
            ]
            outcomes = _upstream(context, before, yes=True)
        outcomes += (_bring(context, chosen[0]),)
        following = {"route": "clmoe merge", "index": "clmoe eval --report ap-af"}
        return _result(
            stage, opened, outcomes, notes, following.get(stage, "clmoe eval --report ap-af")
        )


def _bring(context: Any, node: Node) -> Outcome:
    from clmoe.stages.engine import bring_up_to_date

    outcome: Outcome = bring_up_to_date(context, node)
    return outcome


def _upstream(context: Any, nodes: Iterable[Node], *, yes: bool) -> tuple[Outcome, ...]:
    """Bring route, merge and index up to date, saying so; long work needs a yes."""
    stale = [node for node in nodes if context.run.state(node).status != "fresh"]
    if not stale:
        return ()
    seconds = estimate_seconds(context.run, stale)
    labels = ", ".join(node.label for node in stale)
    if seconds > ASK_ABOVE_SECONDS and not yes:
        raise InputStageError(
            f"{labels} must be brought up to date first, about {seconds / 60:.0f} minutes",
            hint="add --yes to go ahead",
        )
    emit(Note(f"bringing up to date first (about {max(1, round(seconds))} s): {labels}"))
    return tuple(_bring(context, node) for node in stale)


def _result(
    command: str,
    opened: Run,
    outcomes: tuple[Outcome, ...],
    notes: Iterable[str],
    following: str,
    *,
    tables: tuple[Table, ...] = (),
    data: Any = None,
) -> Result:
    return Result(
        command=command,
        run=opened.name,
        outcomes=outcomes,
        tables=tables,
        data=data or {},
        notes=tuple(notes),
        next_command=following,
    )
