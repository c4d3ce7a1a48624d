"""What a command refuses before it changes anything."""

from __future__ import annotations

from clmoe.data.memory import check_room
from clmoe.errors import DataError, UsageError
from clmoe.metrics.answer_accuracy import get_scorer
from clmoe.parallel.launch import launched
from clmoe.recipe.schema import Recipe
from clmoe.recipe.strategy_keys import USED
from clmoe.runs.plan import ALL_TASKS, Node
from clmoe.runs.run import Run
from clmoe.stages.sequence import training_position


def refuse_settings(recipe: Recipe) -> None:
    """Refuse what would fail in the report, after everything else was done.

    Raises:
        UsageError: There is no such scorer.
    """
    get_scorer(recipe.report.scorer)


def refuse_method(run: Run) -> None:
    """Refuse settings of a method with which a training, perhaps the last, would fail.

    Args:
        run: The run as it would be with the command's overrides.

    Raises:
        UsageError: The memory has no room for every task, as far as the tasks are known; or a step
            that the method needs whole would be divided.
    """
    recipe = run.recipe
    if "memory" in USED[recipe.strategy.kind] and recipe.strategy.policy == "equal":
        try:
            check_room(recipe.strategy.memory, tasks=_known_tasks(run))
        except DataError as error:
            raise UsageError(error.message, hint=error.hint) from None
    if recipe.strategy.kind != "none" and isinstance(recipe.train.micro_batch, int):
        _refuse_divided_steps(recipe)


def refuse_processes(run: Run) -> None:
    """Refuse to share a training that is not up to date, where its method's steps stay whole.

    Raises:
        UsageError: Several processes would share it.
    """
    plan = run.plan
    if not launched() or plan.recipe.strategy.kind == "none":
        return
    due = [node for node in plan.nodes() if node.stage == "train"]
    if any(run.state(node).status != "fresh" for node in due):
        _refuse_divided_steps(plan.recipe)


def _refuse_divided_steps(recipe: Recipe) -> None:
    from clmoe.baselines.registry import STRATEGIES
    from clmoe.training.fitting import check_undivided

    if STRATEGIES[recipe.strategy.kind].whole_steps:
        check_undivided(recipe.train, kind=recipe.strategy.kind)


def _known_tasks(run: Run) -> int:
    """How many tasks there will be; 0 where only data that are not prepared yet can tell."""
    from clmoe.data.sources.registry import get_source

    data = run.recipe.data
    if data.tasks is not None:
        return len(data.tasks)
    if run.state(Node("prepare")).status == "fresh":
        return len(run.tasks)
    return 0 if data.question_types else len(get_source(data.source).default_order)


def refuse_training(run: Run, *, task: str | None, again: bool) -> None:
    """Refuse a training that is not due, or that would silently redo an earlier one.

    Args:
        run: The run as it would be with the command's overrides.
        task: The task asked for; None: the one that is due.
        again: Whether redoing was asked for.

    Raises:
        UsageError: With what is due, or with everything that would become stale; or the method's
            settings cannot be.
    """
    plan = run.plan
    refuse_method(run)
    if plan.recipe.protocol.joint:
        if task not in (None, ALL_TASKS):
            raise UsageError(
                "this run trains all tasks at once (protocol.joint)", hint="clmoe train"
            )
        return
    place = training_position(run, task)
    if again or run.state(plan.train(place)).status not in ("stale", "damaged"):
        return
    later = [
        node.label
        for position in range(place, len(plan.tasks) + 1)
        for node in (*plan.learning(position), *plan.row(position))
        if node.label != plan.train(place).label and run.state(node).directory is not None
    ]
    if later:
        raise UsageError(
            f"{plan.train(place).label} is trained already and would be trained again; "
            f"this makes stale: {', '.join(later)}",
            hint=f"clmoe train --task {plan.tasks[place - 1]} --again",
        )


def refuse_other_merges(run: Run) -> None:
    """Refuse to merge a task in another way than the tasks before it were merged.

    theta_t builds on theta_{t-1}: with another gamma now, every earlier merge and all later
    trainings would have to be done again.

    Raises:
        UsageError: With the merges that differ and the command that redoes everything.
    """
    plan = run.plan
    if not plan.merges:
        return
    thetas = [plan.theta(t) for t in range(2, len(plan.tasks) + 1)]
    states = [run.state(node) for node in thetas if node is not None]
    merged = [state for state in states if state.directory is not None]
    other = [state for state in merged[:-1] if state.status == "stale"]
    if other:
        raise UsageError(
            f"{', '.join(state.node.label for state in other)} was merged in another way: "
            f"{other[0].text}",
            hint=f"to redo every merge and the trainings after it: clmoe run {run.recipe.name} "
            f"--name NAME {' '.join(run.overrides)}",
        )
