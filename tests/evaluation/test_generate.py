"""Answers are those of plain greedy decoding, whatever settings a base is shipped with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clmoe.evaluation.generate import generate_answers
from clmoe.model.backbone import Backbone, load_backbone
from clmoe.model.config import ClmoeConfig
from clmoe.model.pictures import make_prompter, picture_inputs
from clmoe.model.tiny import tiny_folder
from clmoe.model.tuner import attach
from clmoe.recipe.schema import Base

QUESTIONS = ["what color is it?", "how many shapes are there?", "where is the blue square?"]
SHIPPED = {
    "do_sample": True, "temperature": 0.3, "top_k": 3, "top_p": 0.5, "repetition_penalty": 1.8,
    "no_repeat_ngram_size": 2, "num_beams": 3, "early_stopping": True, "length_penalty": 2.0,
    "min_new_tokens": 12, "max_length": 4096, "bad_words_ids": [[20], [30]],
    "suppress_tokens": [40, 41, 50], "begin_suppress_tokens": [60], "forced_eos_token_id": 2,
    "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True,
}  # fmt: skip


def answers(base: Backbone, model: Any, *, batch_size: int = 2) -> list[str]:
    prompter = make_prompter(base, suffix="")
    pictures = [Image.new("RGB", (48, 48), (60 * i, 200 - 50 * i, 90)) for i in range(3)]
    found = generate_answers(
        model,
        prompts=[prompter.prompt(question) for question in QUESTIONS],
        rows=range(3),
        inputs=lambda batch: picture_inputs(base, batch, images=[pictures[r] for r in batch.rows]),
        tokenizer=base.tokenizer,
        max_new_tokens=16,
        batch_size=batch_size,
        stops=prompter.stops,
    )
    return [a.text for a in sorted((a for group in found for a in group), key=lambda a: a.row)]


def woken(base: Backbone) -> Any:
    """An adapter with random experts, which make the built-in base repeat itself."""
    model = attach(base.model, ClmoeConfig(experts=2, r=4, alpha=8.0))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "clmoe_B" in name:
            with torch.no_grad():
                parameter.normal_(0.0, 2.0, generator=generator)
    return model.eval()


@pytest.fixture
def shipped(tmp_path: Path) -> Callable[..., str]:
    """A copy of the built-in base with other generation settings."""

    def make(**settings: Any) -> str:
        folder = shutil.copytree(tiny_folder(), tmp_path / "base", dirs_exist_ok=True)
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return str(folder)

    return make


def test_settings_of_the_base_change_no_answer(shipped: Callable[..., str]) -> None:
    plain = load_backbone(Base())
    wanted = [answers(plain, plain.model), answers(plain, woken(plain))]
    # Without the penalty some word comes twice in a row, or the settings could do nothing.
    words = [text.split() for texts in wanted for text in texts]
    assert any(a == b for text in words for a, b in zip(text, text[1:], strict=False))
    base = load_backbone(Base(model=shipped(**SHIPPED), prompt="short"))
    kept = base.model.generation_config
    assert kept.repetition_penalty == 1.8
    for batch_size in (1, 3):
        assert answers(base, base.model, batch_size=batch_size) == wanted[0]
    assert answers(base, woken(base)) == wanted[1]
    assert base.model.generation_config is kept


def test_a_token_that_the_base_stops_at_still_ends_an_answer(shipped: Callable[..., str]) -> None:
    plain = load_backbone(Base())
    model = woken(plain)
    whole = answers(plain, model)
    ids = [plain.tokenizer(text, add_special_tokens=False)["input_ids"] for text in whole]
    stop = next(i for i in ids if len(i) > 2)[2]
    base = load_backbone(Base(model=shipped(eos_token_id=[2, stop]), prompt="short"))
    cut = answers(base, woken(base))
    assert cut != whole
    assert all(long.startswith(short) for short, long in zip(cut, whole, strict=True))


def test_settings_come_back_after_an_error(shipped: Callable[..., str]) -> None:
    base = load_backbone(Base(model=shipped(repetition_penalty=1.8), prompt="short"))
    kept, base.model.forward = base.model.generation_config, None
    with pytest.raises(TypeError):
        answers(base, base.model)
    assert base.model.generation_config is kept
