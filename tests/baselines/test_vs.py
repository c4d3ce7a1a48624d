"""VS: features of the old adapter on the same base, the triplet and the class centres."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from clmoe.baselines.base import StrategyLoss, Task
from clmoe.baselines.vs import TEACHER, VS, triplet_loss
from clmoe.data.batches import collate
from clmoe.model.adapter_file import adapter_tensors, load_adapter
from clmoe.model.backbone import load_backbone
from clmoe.recipe.schema import Base
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.checkpoint import trainable_tensors
from tests.baselines.test_replay import joint


def settings(**values: Any) -> Settings:
    return Settings.model_validate({"memory": 6, **values})


def feature(model: Any, task: Task, example: Any) -> torch.Tensor:
    """f(x) of one prompt, by hand."""
    sample = task.prompts([example])[0]
    batch = collate([sample], rows=[0], pad=task.pad, left=False)
    hidden = model.model(**task.inputs_of([example])(batch)).last_hidden_state[0]
    return F.normalize(hidden.mean(dim=0), dim=0)


def test_triplet_by_hand() -> None:
    old = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    new = torch.tensor([[0.0, 1.0], [3.0, 4.0], [6.0, 0.0]])
    # 0: own 1; other class at (6, 8): sqrt(36 + 49) = 9.22 -> max(0, 1 - 9.22 + 10) = 1.780
    # 1: own 0; other at (6, 8): 5 -> 5; 2: own 8; others at 0: 6, at (3, 4): 5 -> 8 - 5 + 10 = 13
    found = triplet_loss(new, old, classes=["a", "a", "b"], margin=10.0)
    assert float(found) == pytest.approx(11 - 85**0.5 + 5 + 13, rel=1e-5)
    assert float(triplet_loss(new, old, classes=["a", "a", "a"], margin=10.0)) == 0.0


@torch.no_grad()
def test_the_teacher_is_the_previous_adapter_on_the_same_base(
    make_task: Callable[..., Task],
) -> None:
    method = VS(settings())
    method.after_task(make_task("recognition", count=8))
    task = make_task(count=4)
    base = sum(p.numel() for p in task.model.parameters())
    method.before_task(task)
    grown = sum(p.numel() for p in task.model.parameters()) - base
    assert grown == sum(t.numel() for t in adapter_tensors(task.model).values())
    assert method.extra_bytes()["teacher"] == 4 * grown
    assert trainable_tensors(task.model)
    assert not any(TEACHER in name for name in trainable_tensors(task.model))
    for parameter in trainable_tensors(task.model).values():
        parameter += 0.05 * torch.randn(parameter.shape)  # the student moves on
    inputs, _, part = joint(task, method)
    method.before_batch(task.model, inputs, part)
    assert method._old is not None
    assert task.previous is not None
    fresh = load_adapter(load_backbone(Base()).model, task.previous).eval().get_base_model()
    examples = [task.examples[0], method.memory[0], task.examples[1], method.memory[1]]
    for place, example in enumerate(examples):
        expected = feature(fresh, task, example)
        torch.testing.assert_close(method._old[place], expected, rtol=1e-4, atol=1e-5)
        student = feature(task.model.get_base_model(), task, example)
        assert not torch.allclose(student, expected, atol=1e-4)
    method.after_task(task)
    assert TEACHER not in task.model.peft_config
    assert sum(p.numel() for p in task.model.parameters()) == base


def test_both_terms_are_in_the_loss_and_have_gradients(
    make_task: Callable[..., Task],
) -> None:
    kept = settings(alpha=0.0, beta=0.0, margin=5.0)
    method = VS(kept)
    with torch.no_grad():
        method.after_task(make_task("recognition", count=8))
    task = make_task(count=4)
    method.before_task(task)
    inputs, labels, part = joint(task, method)

    def loss(alpha: float, beta: float) -> torch.Tensor:
        method.settings = kept.model_copy(update={"alpha": alpha, "beta": beta})
        found: torch.Tensor = StrategyLoss(task.model, method)(inputs, labels, part)
        return found

    plain = float(loss(0.0, 0.0).detach())
    # Before the first step f is f_old: the own distance is 0, the hardest one below the margin.
    with_triplet = float(loss(2.0, 0.0).detach())
    assert method._old is not None
    classes = ["location", "recognition"] * 2
    expected = triplet_loss(method._old, method._old, classes=classes, margin=5.0)
    assert with_triplet - plain == pytest.approx(2.0 * float(expected) / 4, rel=1e-4)
    centre = method.centers["recognition"]
    distance = ((method._old[[1, 3]] - centre) ** 2).sum() / 2
    assert float(loss(0.0, 3.0).detach()) - plain == pytest.approx(3.0 * float(distance), rel=1e-3)
    task.model.zero_grad()
    (loss(1.0, 1.0) - loss(0.0, 0.0)).backward()  # type: ignore[no-untyped-call]
    assert any(
        p.grad is not None and bool(p.grad.any()) for p in trainable_tensors(task.model).values()
    )
    method.after_task(task)


@torch.no_grad()
def test_centres_are_means_of_old_features_and_persist(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    task = make_task("recognition", count=8)
    method = VS(settings())
    method.after_task(task)
    each = [feature(task.model.get_base_model(), task, example) for example in method.memory]
    torch.testing.assert_close(
        method.centers["recognition"], torch.stack(each).mean(dim=0), rtol=1e-4, atol=1e-5
    )
    method.save(tmp_path / "kept")
    again = VS(settings(), kept=tmp_path / "kept")
    assert torch.equal(again.centers["recognition"], method.centers["recognition"])
    assert again.memory == method.memory
