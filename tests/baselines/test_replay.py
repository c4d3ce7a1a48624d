"""ER, DER and DER++: joint batches, memory, and logits of the moment of storing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clmoe.baselines.base import Part, StrategyLoss, Task, part_of
from clmoe.baselines.replay import DER, DERPP, ER
from clmoe.data.batches import collate, with_replay
from clmoe.errors import ClmoeError
from clmoe.recipe.schema import Strategy as Settings
from clmoe.training.answer_loss import AnswerLoss


def settings(**values: Any) -> Settings:
    return Settings.model_validate({"memory": 6, **values})


def test_a_joint_batch_is_half_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = with_replay([3, 1, 2, 0], first=10, samples=30, generator=generator)
    assert rows[0::2] == [3, 1, 2, 0]
    assert all(10 <= row < 30 for row in rows[1::2])
    assert len(set(rows[1::2])) == 4
    few = with_replay(list(range(8)), first=10, samples=12, generator=generator)
    assert len(few) == 16
    assert set(few[1::2]) <= {10, 11}
    assert with_replay([3, 1], first=10, samples=10, generator=generator) == [3, 1]


def joint(task: Task, method: ER) -> tuple[dict[str, Any], torch.Tensor, Part]:
    """Inputs, labels and part of a batch of two current samples and two replayed ones."""
    samples = [*task.encode(task.examples), *task.encode(method.memory)]
    first = len(task.examples)
    rows = [0, first, 1, first + 1]
    batch = collate([samples[r] for r in rows], rows=rows, pad=task.pad, left=False)
    supervised = [sum(label >= 0 for label in s.labels) for s in samples]
    part = part_of(batch, rows=rows, supervised=supervised, first_replayed=first)
    inputs = task.inputs_of([*task.examples, *method.memory])(batch)
    return inputs, batch.labels, part


def losses(task: Task, inputs: Any, labels: torch.Tensor) -> list[float]:
    """Summed answer loss of each sample, one at a time, from the model's own logits."""
    found = []
    logits = task.model.get_base_model()(**inputs).logits
    for row in range(len(labels)):
        log_p = torch.log_softmax(logits[row, :-1].float(), dim=1)
        wanted = [(i, int(x)) for i, x in enumerate(labels[row, 1:]) if x >= 0]
        found.append(-sum(float(log_p[i, x]) for i, x in wanted))
    return found


@torch.no_grad()
def test_er_averages_over_both_halves(make_task: Callable[..., Task]) -> None:
    task = make_task(count=4)
    method = ER(settings())
    method.after_task(make_task("recognition", count=8))
    inputs, labels, part = joint(task, method)
    each = losses(task, inputs, labels)
    loss = StrategyLoss(task.model, method)(inputs, labels, part)
    assert float(loss) == pytest.approx(sum(each) / part.tokens, rel=1e-5)
    assert part.replayed.tolist() == [False, True, False, True]
    assert (part.rows, part.replayed_rows) == (4, 2)
    assert 0 < part.replayed_tokens < part.tokens


@torch.no_grad()
def test_stored_logits_are_those_of_the_model_at_that_time(
    make_task: Callable[..., Task], logits_of: Callable[..., Any], tmp_path: Path
) -> None:
    task = make_task("recognition", count=8)
    method = DER(settings(top_logits=5))
    method.after_task(task)
    method.save(tmp_path / "kept")
    again = DER(settings(top_logits=5), kept=tmp_path / "kept")
    assert len(again.memory) == 6
    for place, example in enumerate(again.memory):
        logits, labels = logits_of(task, example, True)
        positions = [i for i in range(len(labels) - 1) if labels[i + 1] >= 0]
        expected = logits[positions].float().topk(5, dim=1)
        values, ids = again.stored.of([place])
        assert torch.equal(ids.long(), expected.indices)
        torch.testing.assert_close(values.float(), expected.values, rtol=2e-3, atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", [DER, DERPP])
def test_the_distance_is_nothing_at_storage_time_and_grows(
    make_task: Callable[..., Task], kind: type[DER]
) -> None:
    method = kind(settings(alpha=2.0, beta=0.5))
    method.after_task(make_task("recognition", count=8))
    task = make_task(count=4)
    inputs, labels, part = joint(task, method)
    each = losses(task, inputs, labels)
    current = (each[0] + each[2]) / (part.tokens - part.replayed_tokens)
    own = 0.5 * (each[1] + each[3]) / part.replayed_tokens if kind is DERPP else 0.0
    same = float(StrategyLoss(task.model, method)(inputs, labels, part))
    assert same == pytest.approx(current + own, abs=1e-3)
    method.stored = replace(method.stored, values=method.stored.values + 3)
    away = float(StrategyLoss(task.model, method)(inputs, labels, part))
    assert away - same == pytest.approx(2.0 * 9.0, rel=0.02)  # alpha (z - z_m)^2, z off by 3


def test_logits_of_forgotten_examples_are_dropped(make_task: Callable[..., Task]) -> None:
    method = DER(settings(memory=6))
    method.after_task(make_task("recognition", count=8))
    before = {e.question_id: method.stored.of([i])[0] for i, e in enumerate(method.memory)}
    method.after_task(make_task("location", count=8))
    kept = [example.task for example in method.memory]
    assert (kept.count("recognition"), kept.count("location")) == (3, 3)
    assert len(method.stored.counts) == 6
    assert int(method.stored.counts.sum()) == len(method.stored.values) == len(method.stored.ids)
    for place, example in enumerate(method.memory[:3]):
        assert torch.equal(method.stored.of([place])[0], before[example.question_id])
    extra = method.extra_bytes()
    assert extra["logits"] == len(method.stored.values) * 64 * (2 + 4)
    assert extra["memory"] > 0


def test_missing_logits_are_an_error(make_task: Callable[..., Task], tmp_path: Path) -> None:
    method = DER(settings())
    method.after_task(make_task("recognition", count=8))
    method.stored = replace(method.stored, counts=method.stored.counts[:5])
    method.save(tmp_path / "kept")
    with pytest.raises(ClmoeError, match="has logits for 5 of 6 examples in memory"):
        DER(settings(), kept=tmp_path / "kept")


def test_a_sample_shown_without_labels_adds_nothing(make_task: Callable[..., Task]) -> None:
    task = make_task(count=4)
    method = DER(settings())
    method.after_task(make_task("recognition", count=8))
    inputs, labels, part = joint(task, method)
    loss = StrategyLoss(task.model, method)(inputs, torch.full_like(labels, -100), part)
    assert float(loss.detach()) == 0.0
    assert isinstance(StrategyLoss(task.model, method), AnswerLoss)
