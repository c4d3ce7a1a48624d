"""The loop on the built-in base: exact resume, accumulation, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clmoe.baselines.base import Strategy
from clmoe.data.batches import Batch
from clmoe.data.prompts import TEMPLATES, Encoded, Prompter
from clmoe.errors import ClmoeError
from clmoe.evaluation.generate import generate_answers
from clmoe.events import Event, Progress, subscribe
from clmoe.model.adapter_file import adapter_tensors
from clmoe.model.backbone import Backbone, embed, load_backbone
from clmoe.model.config import ClmoeConfig
from clmoe.model.tuner import attach
from clmoe.recipe.schema import Base, Train
from clmoe.training.checkpoint import trainable_tensors
from clmoe.training.loop import train_adapter
from clmoe.training.training_log import TrainingLog

SETTINGS = Train(lr=5e-3, batch_size=8, checkpoint_every=2, clip=0.5)
QUESTIONS = [("what is it?", "red"), ("is it a big blue circle?", "no"), ("how many?", "two")]


@pytest.fixture
def backbone() -> Backbone:
    return load_backbone(Base())


@pytest.fixture
def prompter(backbone: Backbone) -> Prompter:
    return Prompter(
        tokenizer=backbone.tokenizer,
        template=TEMPLATES["short"],
        image_token=backbone.image_token,
        image_tokens=backbone.image_tokens or 0,
    )


def samples(prompter: Prompter, count: int = 40) -> list[Encoded]:
    return [prompter.encode([QUESTIONS[i % 3]], name=str(i)) for i in range(count)]


def inputs_of(backbone: Backbone) -> Callable[[Batch], dict[str, Tensor]]:
    def build(batch: Batch) -> dict[str, Tensor]:
        width = backbone.model.config.text_config.hidden_size
        features = torch.stack(
            [
                torch.randn(
                    backbone.image_tokens or 0, width, generator=torch.Generator().manual_seed(row)
                )
                for row in batch.rows
            ]
        )
        return {
            "inputs_embeds": embed(backbone, batch.input_ids, features),
            "attention_mask": batch.attention_mask,
        }

    return build


def train(
    prompter: Prompter, settings: Train = SETTINGS, checkpoint: Path | None = None, **config: Any
) -> tuple[Any, TrainingLog]:
    backbone = load_backbone(Base())
    model = attach(backbone.model, ClmoeConfig(**{"experts": 4, "r": 8, "alpha": 16.0, **config}))
    log = train_adapter(
        model,
        samples=samples(prompter),
        inputs=inputs_of(backbone),
        settings=settings,
        pad=backbone.tokenizer.pad_token_id,
        label="test",
        checkpoint=checkpoint,
    )
    return model, log


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_killed_and_resumed_equals_uninterrupted(
    prompter: Prompter, tmp_path: Path, stop: int
) -> None:
    whole, log = train(prompter, dropout=0.1)
    assert (log.steps, log.resumed_at) == (5, 0)

    def kill(event: Event) -> None:
        if isinstance(event, Progress) and event.done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), subscribe(kill):
        train(prompter, checkpoint=tmp_path / "c.pt", dropout=0.1)
    again, log_again = train(prompter, checkpoint=tmp_path / "c.pt", dropout=0.1)
    assert log_again.resumed_at == (stop - 1) // 2 * 2
    assert log_again.losses == log.losses
    first, second = adapter_tensors(whole), adapter_tensors(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulation_equals_a_larger_batch(prompter: Prompter) -> None:
    whole, log = train(prompter)
    for micro in (1, 3, 4):
        parts, log_parts = train(prompter, SETTINGS.model_copy(update={"micro_batch": micro}))
        assert log_parts.losses == pytest.approx(log.losses, rel=1e-4)
        for name, tensor in adapter_tensors(whole).items():
            torch.testing.assert_close(adapter_tensors(parts)[name], tensor, rtol=2e-3, atol=2e-4)


def test_an_automatic_micro_batch_is_the_whole_batch_where_it_fits(prompter: Prompter) -> None:
    whole, log = train(prompter)
    auto, log_auto = train(prompter, SETTINGS.model_copy(update={"micro_batch": "auto"}))
    assert (log.micro_batch, log_auto.micro_batch) == (8, 8)
    assert log_auto.losses == log.losses
    first, second = adapter_tensors(whole), adapter_tensors(auto)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_method_is_given_the_parameters_that_move(
    prompter: Prompter, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, nn.Parameter] = {}
    monkeypatch.setattr(Strategy, "prepared", lambda _, parameters: given.update(parameters))
    model, _ = train(prompter)
    live = trainable_tensors(model)
    assert given.keys() == live.keys()
    assert all(given[name] is parameter for name, parameter in live.items())


def test_loss_is_the_mean_over_supervised_tokens(prompter: Prompter) -> None:
    """The first loss against transformers' own loss on the same batch, weighted by hand."""
    _, log = train(prompter, SETTINGS.model_copy(update={"batch_size": 40, "checkpoint_every": 0}))
    backbone = load_backbone(Base())
    total, tokens = 0.0, 0
    for row, sample in enumerate(samples(prompter)):
        labels = torch.tensor([sample.labels])
        batch = Batch(
            input_ids=torch.tensor([sample.input_ids]),
            attention_mask=torch.ones(1, len(sample.input_ids), dtype=torch.long),
            labels=labels,
            question=torch.zeros(1, len(sample.input_ids), dtype=torch.bool),
            rows=[row],
        )
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            output = backbone.model(**inputs_of(backbone)(batch), labels=labels)
        total += float(output.loss) * count
        tokens += count
    assert log.losses[0] == pytest.approx(total / tokens, rel=1e-5)
    assert log.supervised == tokens


def test_learning_lowers_the_loss_and_touches_no_base_weight(prompter: Prompter) -> None:
    model, log = train(prompter, SETTINGS.model_copy(update={"epochs": 4.0}))
    assert sum(log.losses[-5:]) < 0.5 * sum(log.losses[:5])
    fresh = dict(load_backbone(Base()).model.named_parameters())
    for name, parameter in model.get_base_model().named_parameters():
        if "clmoe_" not in name:
            assert torch.equal(parameter, fresh[name.replace(".base_layer", "")])


def test_nothing_to_train_on_and_a_loss_that_is_not_finite(
    backbone: Backbone, prompter: Prompter, tmp_path: Path
) -> None:
    model = attach(backbone.model, ClmoeConfig(experts=2, r=4))
    common: dict[str, Any] = {
        "settings": SETTINGS,
        "pad": 0,
        "label": "test",
        "checkpoint": tmp_path / "c.pt",
    }
    with pytest.raises(ClmoeError, match="nothing to train on"):
        train_adapter(model, samples=[], inputs=inputs_of(backbone), **common)

    def poisoned(batch: Batch) -> dict[str, Tensor]:
        built = inputs_of(backbone)(batch)
        return {**built, "inputs_embeds": built["inputs_embeds"] * float("nan")}

    before = {name: tensor.clone() for name, tensor in adapter_tensors(model).items()}
    with pytest.raises(ClmoeError, match="loss is nan at step 1 of 5") as caught:
        train_adapter(model, samples=samples(prompter), inputs=poisoned, **common)
    assert "train.lr" in str(caught.value.hint)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter_tensors(model).items())
    assert not (tmp_path / "c.pt").exists()


def test_batches_of_any_size_give_the_same_answers(backbone: Backbone, prompter: Prompter) -> None:
    prompts = [prompter.prompt(QUESTIONS[i % 3][0] + " really?" * (i % 4)) for i in range(32)]
    answers = []
    for batch_size in (1, 5, 32):
        batches = generate_answers(
            backbone.model,
            prompts=prompts,
            rows=range(32),
            inputs=inputs_of(backbone),
            tokenizer=backbone.tokenizer,
            max_new_tokens=4,
            batch_size=batch_size,
        )
        answers.append({a.row: a.text for batch in batches for a in batch})
    assert len(answers[0]) == 32
    assert answers[0] == answers[1] == answers[2]
