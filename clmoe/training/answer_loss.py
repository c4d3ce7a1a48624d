"""Eq 4: the negative log-likelihood of the answer tokens, and of no other token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clmoe.data.batches import Batch
from clmoe.data.prompts import IGNORE
from clmoe.errors import ClmoeError


@dataclass(frozen=True)
class Answered:
    """What a model makes of a batch.

    Attributes:
        hidden: Last hidden states, [batch, tokens, hidden].
        logits: Logits of the supervised tokens, [supervised, vocabulary].
        targets: The supervised tokens, [supervised].
        rows: The sample of each supervised token, [supervised].
    """

    hidden: Tensor
    logits: Tensor
    targets: Tensor
    rows: Tensor

    def total(self) -> Tensor:
        """Eq 4 summed over supervised tokens, in fp32."""
        return nn.functional.cross_entropy(self.logits.float(), self.targets, reduction="sum")

    def token_losses(self) -> Tensor:
        """Eq 4 for each supervised token, in fp32, [supervised]."""
        return nn.functional.cross_entropy(self.logits.float(), self.targets, reduction="none")


class AnswerLoss(nn.Module):
    """A vision-language model whose forward is the summed loss of Eq 4 over a batch.

    The output layer runs only at the positions that predict a supervised token, so memory grows
    with the answers and not with the vocabulary times the sequence.
    """

    def __init__(self, model: Any) -> None:
        """Wrap an adapted model; its parameters are used, not copied."""
        super().__init__()
        self.model = model
        # The blocks that FSDP wraps, which Accelerate reads from whatever it is given. A family may
        # name more kinds than this model has (CLIP's text tower), which Accelerate refuses.
        base = model.get_base_model()
        named = getattr(base, "_no_split_modules", None) or ()
        self._no_split_modules = sorted(set(named) & {type(m).__name__ for m in base.modules()})

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Return the sum over supervised tokens of ``-log p(O_j | I, O_<j)`` in fp32.

        Args:
            inputs: What the inner model takes, sequence length ``tokens``.
            labels: [batch, tokens]; the token at ``j`` is predicted from position ``j - 1``.
                Without a supervised token the loss is 0, with gradients of 0.
        """
        return self.answered(inputs, labels).total()

    def answered(self, inputs: dict[str, Tensor], labels: Tensor) -> Answered:
        """Run the model, and the output layer where something is supervised; as `forward`."""
        base = self.model.get_base_model()
        hidden = base.model(**inputs, use_cache=False).last_hidden_state
        supervised = labels[:, 1:] != IGNORE
        logits = base.get_output_embeddings()(hidden[:, :-1][supervised])
        return Answered(hidden, logits, labels[:, 1:][supervised], supervised.nonzero()[:, 0])

    @torch.no_grad()
    def check(self, inputs: dict[str, Tensor], labels: Tensor) -> None:
        """Compare the logits of Eq 4 with those of the model's own forward, once, on one sample.

        Raises:
            ClmoeError: They differ: the model does more than its output layer says (it caps or
                scales its logits), so that another loss than its own would be trained.
        """
        training = self.model.training
        self.model.eval()  # dropout would make any two passes differ
        ours, supervised = self.answered(inputs, labels).logits, labels[:, 1:] != IGNORE
        theirs = self.model.get_base_model()(**inputs, use_cache=False).logits[:, :-1][supervised]
        self.model.train(training)
        tolerance = 1e-3 if ours.dtype == torch.float32 else 5e-2
        if not torch.allclose(
            ours.float(), theirs.float(), rtol=tolerance, atol=tolerance, equal_nan=True
        ):
            raise ClmoeError(
                "this base model changes its logits after the output layer (a cap or a scale), "
                "which the training loss does not know of",
                hint="use a base model whose logits are its output layer's product",
            )


def supervised_tokens(batch: Batch) -> int:
    """Number of tokens of a batch that carry loss."""
    return int((batch.labels[:, 1:] != IGNORE).sum())
