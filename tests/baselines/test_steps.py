"""Each method over two small trainings: the settings that it reads, and divided steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from clmoe.baselines.base import Strategy, Task
from clmoe.baselines.registry import STRATEGIES, make_strategy
from clmoe.errors import UsageError
from clmoe.model.adapter_file import adapter_tensors
from clmoe.recipe.schema import Strategy as Settings
from clmoe.recipe.schema import Train
from clmoe.recipe.strategy_keys import USED
from clmoe.training.loop import train_adapter

FEW: dict[str, Any] = {"memory": 6, "samples": 2}


class Recording:
    """Settings that remember which of them were read."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self.read = settings, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._settings, name)


def learn(task: Task, method: Strategy, *, micro_batch: object = None) -> dict[str, torch.Tensor]:
    """Train a task of four examples in two steps, as the train stage does; gives the adapter."""
    torch.manual_seed(0)
    method.before_task(task)
    shown = [*task.examples, *method.memory]
    train_adapter(
        task.model,
        samples=task.encode(shown),
        inputs=task.inputs_of(shown),
        settings=Train.model_validate({"batch_size": 2, "lr": 1e-3, "micro_batch": micro_batch}),
        pad=task.pad,
        label=task.name,
        strategy=method,
    )
    learned = {name: tensor.clone() for name, tensor in adapter_tensors(task.model).items()}
    method.after_task(task)
    return learned


def two_tasks(
    make_task: Callable[..., Task], method: Strategy, *, micro_batch: object = None
) -> dict[str, torch.Tensor]:
    learn(make_task("recognition", count=4, previous=False), method, micro_batch=micro_batch)
    return learn(make_task(count=4), method, micro_batch=micro_batch)


@pytest.mark.parametrize("kind", USED)
def test_a_method_reads_the_settings_that_the_table_says(
    make_task: Callable[..., Task], kind: str
) -> None:
    settings: Any = Recording(Settings.model_validate({"kind": kind, **FEW}))
    two_tasks(make_task, STRATEGIES[kind](settings))
    assert settings.read - {"kind"} == set(USED[kind])  # the kind is in messages


@pytest.mark.parametrize("kind", USED)
def test_micro_batches_change_only_rounding_or_are_refused(
    make_task: Callable[..., Task], kind: str
) -> None:
    settings = Settings.model_validate({"kind": kind, **FEW})
    if STRATEGIES[kind].whole_steps:
        with pytest.raises(UsageError, match=f"strategy.kind={kind} compares all samples"):
            two_tasks(make_task, make_strategy(settings, kept=None), micro_batch=3)
        return
    methods = [make_strategy(settings, kept=None) for _ in range(2)]
    whole, divided = (
        two_tasks(make_task, method, micro_batch=micro)
        for method, micro in zip(methods, (None, 1), strict=True)
    )
    assert whole.keys() == divided.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(divided[name], tensor, rtol=1e-3, atol=1e-5)
    one, two = (method.moving() for method in methods)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)


def test_only_vs_compares_samples_of_a_step() -> None:
    assert [kind for kind, method in STRATEGIES.items() if method.whole_steps] == ["vs"]
