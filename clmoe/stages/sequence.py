"""Where a run stands in its sequence of tasks, and what comes next."""

from __future__ import annotations

from clmoe.errors import InputStageError, UsageError
from clmoe.runs.plan import ALL_TASKS, BASE_ROW, Node, Plan
from clmoe.runs.run import Run


def due_position(run: Run) -> int:
    """Position of the first task whose training is not up to date; M + 1 when all are."""
    plan = run.plan
    for place in range(1, len(plan.tasks) + 1):
        if run.state(plan.train(place)).status != "fresh":
            return place
    return len(plan.tasks) + 1


def newest_position(run: Run) -> int:
    """Position of the newest task whose training is up to date; M after joint training.

    Raises:
        InputStageError: Nothing is trained yet.
    """
    plan = run.plan
    if plan.recipe.protocol.joint:
        place = len(plan.tasks) if run.state(plan.train(0)).status == "fresh" else 0
    else:
        place = due_position(run) - 1
    if place == 0:
        first = plan.train(0 if plan.recipe.protocol.joint else 1)
        state = run.state(first)
        raise InputStageError(
            f"nothing is trained yet: {first.label} is {state.status}",
            hint="clmoe train" if first.task == ALL_TASKS else f"clmoe train --task {first.task}",
        )
    return place


def training_position(run: Run, task: str | None) -> int:
    """Position of the task to train: the one named, or the one that is due.

    Raises:
        UsageError: Every task is trained, or an earlier one is due.
    """
    plan, due = run.plan, due_position(run)
    place = due if task is None else plan.locate(Node("train", task)).position or 0
    if place > len(plan.tasks):
        raise UsageError("every task is trained", hint="clmoe report --report all")
    if place > due:
        raise UsageError(
            f"{plan.tasks[place - 1]} is not due: {plan.tasks[due - 1]} comes before it",
            hint=f"clmoe train --task {plan.tasks[due - 1]}",
        )
    return place


def row_position(run: Run, after: str | None) -> int:
    """Position of the row that ``--after`` names; None: the newest; ``base``: 0.

    Raises:
        InputStageError: The training that the row needs is not up to date.
    """
    plan = run.plan
    if after == BASE_ROW:
        return 0
    if after is None or (after == ALL_TASKS and plan.recipe.protocol.joint):
        return newest_position(run)
    place = plan.locate(Node("train", after)).position or 0
    if plan.recipe.protocol.joint or run.state(plan.train(place)).status != "fresh":
        task = plan.tasks[min(due_position(run), place) - 1]
        raise InputStageError(
            f"{after} is not trained yet, so there is no row after it",
            hint="clmoe train" if plan.recipe.protocol.joint else f"clmoe train --task {task}",
        )
    return place


def between_trainings(plan: Plan, place: int, *, gates: bool) -> list[Node]:
    """What the stages route, merge and (with ``gates``) index must have done up to a task.

    These are brought up to date without being asked for; a training never is.
    """
    wanted = {"merge", "route"} if plan.merges else set()
    if gates and plan.soft_gates:
        wanted |= {"route"}
    if gates and plan.indexes:
        wanted |= {"index"}
    return [
        node
        for position in range(1, place + 1)
        for node in plan.learning(position)
        if node.stage in wanted
    ]


def next_command(run: Run) -> str:
    """What to type after a row of the matrix is filled."""
    plan = run.plan
    if plan.recipe.protocol.joint:
        return "clmoe report --report all"
    place = due_position(run)
    if place > len(plan.tasks):
        return "clmoe report --report all"
    return f"clmoe train --task {plan.tasks[place - 1]}"
