"""The loss at supervised positions only, and the check that it is the model's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clmoe.data.prompts import IGNORE
from clmoe.errors import ClmoeError
from clmoe.training.answer_loss import AnswerLoss


class Toy(nn.Module):
    """A language model of one embedding and one output layer; `cap` changes its logits."""

    def __init__(self, cap: float | None = None) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.cap = cap
        self.rows: list[int] = []
        self.head.register_forward_hook(lambda m, x, out: self.rows.append(out[..., 0].numel()))

    def get_base_model(self) -> Toy:
        return self

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def model(self, input_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(last_hidden_state=self.embedding(input_ids))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        logits = self.head(self.embedding(input_ids))
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return SimpleNamespace(logits=logits)


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])
LABELS = torch.tensor([[IGNORE, IGNORE, 3, 4], [IGNORE, 6, IGNORE, IGNORE]])


def test_the_sum_over_supervised_tokens_and_no_other_logits() -> None:
    torch.manual_seed(0)
    toy = Toy()
    loss = AnswerLoss(toy)({"input_ids": IDS}, LABELS).detach()
    expected = 0.0
    for row, position in ((0, 2), (0, 3), (1, 1)):
        logits = (toy.head.weight @ toy.embedding.weight[IDS[row, position - 1]]).detach()
        expected -= float(torch.log_softmax(logits, dim=0)[LABELS[row, position]])
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert toy.rows[0] == 3


def test_nothing_supervised_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    toy = Toy()
    loss = AnswerLoss(toy)({"input_ids": IDS}, torch.full_like(IDS, IGNORE))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in toy.parameters())


def test_a_model_that_changes_its_logits_is_refused() -> None:
    torch.manual_seed(0)
    AnswerLoss(Toy()).check({"input_ids": IDS}, LABELS)
    with pytest.raises(ClmoeError, match="changes its logits after the output layer") as caught:
        AnswerLoss(Toy(cap=0.5)).check({"input_ids": IDS}, LABELS)
    assert caught.value.hint is not None


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_the_mode_as_it_was(training: bool) -> None:
    toy = Toy().train(training)
    AnswerLoss(toy).check({"input_ids": IDS}, LABELS)
    assert toy.training is training


def test_only_blocks_that_the_model_has_are_named_for_sharding() -> None:
    """LLaVA names the blocks of CLIP's text tower too, which it does not have."""
    toy = Toy()
    assert AnswerLoss(toy)._no_split_modules == []
    toy._no_split_modules = {"Linear", "CLIPTextEmbeddings", "Embedding"}  # type: ignore[assignment]
    assert AnswerLoss(toy)._no_split_modules == ["Embedding", "Linear"]
