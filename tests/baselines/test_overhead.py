"""What a step of each method costs beside one of plain tuning: processor time, taken in turns."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import pytest
import torch

from clmoe.baselines.base import Strategy, StrategyLoss, Task, part_of
from clmoe.baselines.registry import make_strategy
from clmoe.data.batches import collate, with_replay
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.checkpoint import trainable_tensors

LIMITS = {"ewc": 1.3, "mas": 1.3, "er": 2.2, "der": 2.2, "derpp": 2.2}
BATCH, ROUNDS = 16, 9


def step_of(task: Task, strategy: Strategy) -> Callable[[], float]:
    """Forward and backward of a step's batch, as the training loop does; gives its seconds."""
    samples = [*task.encode(task.examples), *task.encode(strategy.memory)]
    first = len(task.examples)
    rows = with_replay(
        range(BATCH), first=first, samples=len(samples), generator=torch.Generator().manual_seed(0)
    )
    batch = collate([samples[r] for r in rows], rows=rows, pad=task.pad, left=False)
    supervised = [sum(label >= 0 for label in s.labels) for s in samples]
    part = part_of(batch, rows=rows, supervised=supervised, first_replayed=first)
    build = task.inputs_of([*task.examples, *strategy.memory])
    build(batch)  # the pictures' features are kept from here on
    loss_of = StrategyLoss(task.model, strategy)

    def step() -> float:
        started = time.process_time()
        loss = loss_of(build(batch), batch.labels, part)
        penalty = strategy.penalty()
        torch.autograd.backward(loss if penalty is None else loss + penalty)
        strategy.after_step()
        return time.process_time() - started

    return step


@pytest.mark.slow
def test_a_step_costs_what_is_said(make_task: Callable[..., Task]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = make_task(count=40)
        steps = {"none": step_of(plain, Strategy(Settings()))}
        for kind in ("ewc", "mas", "er", "der", "derpp", "vs", "vqacl"):
            strategy = make_strategy(Settings(kind=kind, samples=4, memory=40), kept=None)
            strategy.after_task(make_task("recognition", count=40))
            task = make_task(count=40)
            strategy.before_task(task)
            strategy.prepared(trainable_tensors(task.model))
            steps[kind] = step_of(task, strategy)
        taken: dict[str, list[float]] = {kind: [] for kind in steps}
        for turn in range(ROUNDS + 2):
            for kind, step in steps.items():
                seconds = step()
                if turn >= 2:
                    taken[kind].append(seconds)
    finally:
        torch.set_num_threads(threads)
    ratios = {
        kind: statistics.median(a / b for a, b in zip(each, taken["none"], strict=True))
        for kind, each in taken.items()
    }
    report = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items())
    sys.stdout.write(f"\nprocessor time of a step beside plain tuning: {report}\n")
    for kind, limit in LIMITS.items():
        assert ratios[kind] <= limit, report
