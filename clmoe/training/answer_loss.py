"""Eq 4: the negative log-likelihood of the answer tokens, and of no other token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from clmoe.data.batches import Batch
from clmoe.data.prompts import IGNORE


class AnswerLoss(nn.Module):
    """A vision-language model whose forward is the summed loss of Eq 4 over a batch.

    The output layer runs only at the positions that predict a supervised token, so memory grows
    with the answers and not with the vocabulary times the sequence.
    """

    def __init__(self, model: Any) -> None:
        """Wrap an adapted model; its parameters are used, not copied."""
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Return the sum over supervised tokens of ``-log p(O_j | I, O_<j)`` in fp32.

        Args:
            inputs: What the inner model takes, sequence length ``tokens``.
            labels: [batch, tokens]; the token at ``j`` is predicted from position ``j - 1``.
        """
        base = self.model.get_base_model()
        hidden = base.model(**inputs, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        supervised = targets != IGNORE
        logits = base.get_output_embeddings()(hidden[:, :-1][supervised])
        return nn.functional.cross_entropy(logits.float(), targets[supervised], reduction="sum")


def supervised_tokens(batch: Batch) -> int:
    """Number of tokens of a batch that carry loss."""
    return int((batch.labels[:, 1:] != IGNORE).sum())
