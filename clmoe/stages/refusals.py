"""What a command refuses before it changes anything."""

from __future__ import annotations

from clmoe.errors import UsageError
from clmoe.runs.plan import ALL_TASKS
from clmoe.runs.run import Run
from clmoe.stages.sequence import training_position


def refuse_training(run: Run, *, task: str | None, again: bool) -> None:
    """Refuse a training that is not due, or that would silently redo an earlier one.

    Args:
        run: The run as it would be with the command's overrides.
        task: The task asked for; None: the one that is due.
        again: Whether redoing was asked for.

    Raises:
        UsageError: With what is due, or with everything that would become stale.
    """
    plan = run.plan
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
