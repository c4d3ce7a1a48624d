"""Running out of memory: exit 5, the measured peak, and three overrides that a recipe accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clmoe.errors import MemoryExhaustedError
from clmoe.evaluation.answerer import Answerer
from clmoe.recipe.load import resolve_text
from clmoe.recipe.schema import Recipe
from clmoe.runs.plan import Node
from clmoe.stages import pipeline, train
from clmoe.stages.exhaustion import exhausted, overrides

CPU = torch.device("cpu")


def no_memory(*_: Any, **__: Any) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 TB")


def test_a_training_that_runs_out_of_memory(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "train_adapter", no_memory)
    with pytest.raises(MemoryExhaustedError) as caught:
        pipeline.train(
            runs, run=None, task="recognition", overrides=["train.lr=1e-4"], again=True, yes=False
        )
    assert caught.value.exit_code == 5
    said = caught.value.message
    assert said.startswith("train/01-recognition ran out of memory on cpu: the process held ")
    assert float(said.split("held ")[1].split(" GiB")[0]) > 0.1
    assert caught.value.hint == (
        "try one of train.micro_batch=auto, train.gradient_checkpointing=true, "
        "base.quantization=nf4"
    )


def test_an_evaluation_that_runs_out_of_memory(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answerer, "answers", no_memory)
    with pytest.raises(MemoryExhaustedError) as caught:
        pipeline.evaluate(
            runs, run=None, after="recognition", tasks="seen", report="none", oracle_task=None,
            overrides=["eval.max_new_tokens=5"], yes=False,
        )  # fmt: skip
    assert str(caught.value.hint).startswith("try one of eval.batch_size=32, ")


def test_another_error_stays_what_it_is(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(train, "train_adapter", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        pipeline.train(
            runs, run=None, task="recognition", overrides=["train.lr=1e-4"], again=True, yes=False
        )


@pytest.mark.parametrize("stage", ["train", "eval", "route", "index"])
@pytest.mark.parametrize("text", ["", "base.dtype: float32", "train.micro_batch: 1"])
def test_every_override_is_one_that_a_recipe_accepts_and_changes_it(stage: str, text: str) -> None:
    before = resolve_text(text, origin="x").recipe
    found = overrides(before, stage=stage)
    assert len(found) >= 3
    for override in found:
        after = resolve_text(text, origin="x", overrides=[override]).recipe
        key = override.partition("=")[0]
        assert after.get(key) != before.get(key)
    assert str(exhausted(before, Node(stage, "a", position=1), device=CPU).hint).count("=") == 3


def test_nothing_is_suggested_twice() -> None:
    small = {"train": {"micro_batch": 1, "gradient_checkpointing": True}}
    found = overrides(Recipe.model_validate(small), stage="train")
    assert "train.micro_batch=auto" not in found
    assert "train.gradient_checkpointing=true" not in found


def test_a_step_that_is_never_divided_needs_something_else() -> None:
    recipe = resolve_text("", origin="x", overrides=["method.name=vs"]).recipe
    assert overrides(recipe, stage="train")[0] == "train.gradient_checkpointing=true"
