"""EWC and MAS: importances against slow references, and penalties that really pull."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clmoe.baselines.base import Task
from clmoe.baselines.penalties import EWC, MAS, Penalty
from clmoe.errors import ClmoeError
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.checkpoint import trainable_tensors

BOTH = pytest.mark.parametrize("method", [EWC, MAS])


def settings(**values: Any) -> Settings:
    return Settings.model_validate({"samples": 100, **values})


def test_the_fisher_is_the_mean_of_squared_per_sample_gradients(
    make_task: Callable[..., Task], logits_of: Callable[..., Any]
) -> None:
    task = make_task()
    expected = {name: torch.zeros_like(p) for name, p in trainable_tensors(task.model).items()}
    for example in task.examples:
        logits, labels = logits_of(task, example, True)
        log_p = torch.log_softmax(logits[:-1].float(), dim=1)
        likelihood = sum(
            log_p[i, labels[i + 1]] for i in range(len(labels) - 1) if labels[i + 1] >= 0
        )
        task.model.zero_grad()
        likelihood.backward()  # type: ignore[union-attr]
        for name, parameter in trainable_tensors(task.model).items():
            assert parameter.grad is not None
            expected[name] += parameter.grad**2 / len(task.examples)
    method = EWC(settings())
    method.after_task(task)
    assert method.importance.keys() == expected.keys()
    assert sum(float(t.sum()) for t in expected.values()) > 0
    for name, tensor in expected.items():
        torch.testing.assert_close(method.importance[name], tensor, rtol=1e-3, atol=1e-9)


def test_omega_is_the_mean_of_absolute_gradients_without_labels(
    make_task: Callable[..., Task], logits_of: Callable[..., Any]
) -> None:
    task = make_task()
    expected = {name: torch.zeros_like(p) for name, p in trainable_tensors(task.model).items()}
    for example in task.examples:
        logits, _ = logits_of(task, example, False)
        task.model.zero_grad()
        logits[-1].float().pow(2).sum().backward()
        for name, parameter in trainable_tensors(task.model).items():
            assert parameter.grad is not None
            expected[name] += parameter.grad.abs() / len(task.examples)
    method = MAS(settings())
    method.after_task(task)
    for name, tensor in expected.items():
        torch.testing.assert_close(method.importance[name], tensor, rtol=1e-3, atol=1e-5)


@BOTH
def test_the_penalty_is_zero_at_the_anchor_and_pulls_back_elsewhere(
    make_task: Callable[..., Task], method: type[Penalty]
) -> None:
    task = make_task()
    strategy = method(settings(strength=3.0))
    assert strategy.penalty() is None
    strategy.after_task(task)
    strategy.before_task(task)
    strategy.prepared(trainable_tensors(task.model))
    start = strategy.penalty()
    assert start is not None
    start.backward()  # type: ignore[no-untyped-call]
    assert float(start.detach()) == 0.0
    assert all(
        p.grad is not None and not p.grad.any() for p in trainable_tensors(task.model).values()
    )
    name, parameter = next(iter(trainable_tensors(task.model).items()))
    place = int(strategy.importance[name].argmax())
    weight = float(strategy.importance[name].flatten()[place])
    with torch.no_grad():
        parameter.view(-1)[place] += 0.25
    task.model.zero_grad()
    moved = strategy.penalty()
    assert moved is not None
    moved.backward()  # type: ignore[no-untyped-call]
    factor = 0.5 if method is EWC else 1.0
    assert float(moved.detach()) == pytest.approx(factor * 3.0 * weight * 0.25**2, rel=1e-4)
    assert parameter.grad is not None
    assert float(parameter.grad.view(-1)[place]) == pytest.approx(
        2 * factor * 3.0 * weight * 0.25, rel=1e-4
    )


@BOTH
def test_importances_add_up_and_persist(
    make_task: Callable[..., Task], method: type[Penalty], tmp_path: Path
) -> None:
    task = make_task(count=4)
    one = method(settings())
    one.after_task(task)
    one.save(tmp_path / "kept")
    again = method(settings(decay=0.5), kept=tmp_path / "kept")
    assert all(torch.equal(again.importance[n], t) for n, t in one.importance.items())
    again.after_task(task)
    for name, tensor in one.importance.items():
        torch.testing.assert_close(again.importance[name], 1.5 * tensor)
    held = sum(t.nbytes for t in one.importance.values())
    assert again.extra_bytes() == {"importance": held, "anchor": held}


def test_importances_of_other_tensors_are_refused(make_task: Callable[..., Task]) -> None:
    strategy = EWC(settings())
    strategy.importance = {"something.else": torch.ones(2)}
    with pytest.raises(ClmoeError, match="of other tensors"):
        strategy.before_task(make_task())


@BOTH
def test_the_penalty_pulls_at_the_parameters_that_the_optimizer_moves(
    make_task: Callable[..., Task], method: type[Penalty]
) -> None:
    """An engine may put other parameters in the place of those that were anchored."""
    task = make_task(count=2)
    strategy = method(settings())
    strategy.prepared({})  # a first task has no anchors
    assert strategy.penalty() is None
    strategy.after_task(task)
    strategy.before_task(task)
    with pytest.raises(AssertionError, match="the parameters that the optimizer moves"):
        strategy.penalty()
    live = {n: torch.nn.Parameter(p.detach() + 1) for n, p in trainable_tensors(task.model).items()}
    strategy.prepared(live)
    penalty = strategy.penalty()
    assert penalty is not None
    penalty.backward()  # type: ignore[no-untyped-call]
    expected = strategy.factor * sum(float(t.sum()) for t in strategy.importance.values())
    assert float(penalty.detach()) == pytest.approx(strategy.settings.strength * expected, rel=1e-3)
    assert all(p.grad is not None for p in live.values())
    assert all(p.grad is None for p in trainable_tensors(task.model).values())


def test_the_penalty_takes_no_shards_and_no_other_parameters(
    make_task: Callable[..., Task],
) -> None:
    task = make_task(count=2)
    strategy = EWC(settings())
    strategy.after_task(task)
    strategy.before_task(task)
    live = trainable_tensors(task.model)
    with pytest.raises(AssertionError, match="other parameters"):
        strategy.prepared(dict(list(live.items())[1:]))
    shard: Any = torch.nn.Parameter(torch.empty(0))
    shard.ds_id = 0
    with pytest.raises(AssertionError, match="whole parameters"):
        strategy.prepared(live | {next(iter(live)): shard})


def test_as_many_samples_as_asked_for(make_task: Callable[..., Task]) -> None:
    task = make_task(count=6)
    asked: list[int] = []

    class Counting(EWC):
        def values(self, task: Task, examples: Any) -> Any:
            asked.append(len(examples))
            return super().values(task, examples)

    Counting(settings(samples=4)).after_task(task)
    Counting(settings(samples=40)).after_task(task)
    assert asked == [4, 6]
