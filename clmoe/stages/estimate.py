"""How long a stage will take, from what the same run measured before."""

from __future__ import annotations

from collections.abc import Iterable

from clmoe.runs.plan import Node
from clmoe.runs.run import Run

# Passes over a task's questions, relative to training (forward and backward cost three forwards).
_SHARE_OF_TRAINING = {"route": 0.4, "index": 0.1, "merge": 0.02}


def estimate_seconds(run: Run, nodes: Iterable[Node]) -> float:
    """Seconds for stages that are not up to date, in proportion to their task's training time.

    A stage of the same kind that was committed before counts instead where there is one.
    """
    total = 0.0
    for node in nodes:
        state = run.state(node)
        if state.status == "fresh":
            continue
        if state.directory is not None and state.status == "stale":
            total += run.manifest(node).seconds
            continue
        training = run.state(run.plan.train(node.position or 0))
        if training.directory is not None:
            seconds = run.manifest(training.node).seconds
            total += seconds * _SHARE_OF_TRAINING[node.stage]
    return total
