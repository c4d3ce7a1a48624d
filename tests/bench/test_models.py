"""The models that are measured have the sizes that their names promise."""

from __future__ import annotations

import pytest
import torch

from clmoe.bench.models import Ids, build, llava_config
from clmoe.bench.training import ANSWER_TOKENS, step_inputs
from clmoe.data.prompts import IGNORE
from clmoe.errors import UsageError

CPU = torch.device("cpu")
VICUNA, EXTRA_IDS, CLIP, PROJECTOR = 6_738_415_616, 2 * 64 * 4096, 303_507_456, 20_979_712


def test_llava_7b_is_llava_1_5_7b() -> None:
    model = build("llava-7b", layers=None, device=torch.device("meta"), dtype=torch.bfloat16)
    parameters = list(model.model.parameters())
    assert sum(p.numel() for p in parameters) == VICUNA + EXTRA_IDS + CLIP + PROJECTOR
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert (model.image_tokens, model.side, model.image_token) == (576, 336, 32000)
    assert not any(p.requires_grad for p in parameters)


def test_llava_small_is_between_50_and_100_million() -> None:
    config = llava_config("llava-small", layers=None)
    assert config.text_config.num_hidden_layers == 8
    model = build("llava-small", layers=None, device=torch.device("meta"), dtype=torch.float32)
    assert 50e6 < sum(p.numel() for p in model.model.parameters()) < 100e6


def test_layers_cut_the_depth() -> None:
    assert llava_config("llava-7b", layers=3).text_config.num_hidden_layers == 3
    tiny = build("tiny", layers=2, device=CPU, dtype=torch.float32)
    assert len(tiny.model.get_decoder().layers) == 2
    inputs, _ = step_inputs(tiny, batch=1, tokens=8)
    assert tiny.model(**inputs).logits.isfinite().all()


def test_a_dtype_leaves_the_default_alone() -> None:
    build("llava-small", layers=1, device=torch.device("meta"), dtype=torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("name", "layers", "message", "hint"),
    [
        ("tinny", None, "'tinny' is no model to measure; did you mean 'tiny'?", "llava-7b"),
        ("tiny", 5, "--layers 5: the built-in base has 4 decoder blocks", "llava-small"),
        ("tiny", 0, "--layers 0 is not possible", "at least 1"),
    ],
)
def test_what_cannot_be_built(name: str, layers: int | None, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        build(name, layers=layers, device=CPU, dtype=torch.float32)
    assert raised.value.message == message
    assert hint in str(raised.value.hint)


def test_a_batch_has_its_image_tokens_and_supervises_the_end() -> None:
    tiny = build("tiny", layers=1, device=CPU, dtype=torch.float32)
    inputs, labels = step_inputs(tiny, batch=3, tokens=12)
    ids = inputs["input_ids"]
    assert ids.shape == labels.shape == (3, 12 + tiny.image_tokens)
    assert ((ids == tiny.image_token).sum(dim=1) == tiny.image_tokens).all()
    assert ((labels != IGNORE).sum(dim=1) == ANSWER_TOKENS).all()
    assert torch.equal(labels[:, -ANSWER_TOKENS:], ids[:, -ANSWER_TOKENS:])


def test_text_of_a_random_model_is_its_ids() -> None:
    rows = torch.tensor([[7, 8, 2, 0], [9, 2, 0, 0]])
    assert Ids().batch_decode(rows, skip_special_tokens=True) == ["7 8", "9"]
    assert Ids().batch_decode([[7], []]) == ["7", ""]
