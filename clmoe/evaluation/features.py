"""F(x) of Eq 7 and 8: one text feature a question, from the bare base model.

Adapters are off and the picture is left out, so features of different tasks stay comparable
however many tasks have been learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clmoe.data.batches import by_length


@torch.no_grad()
def question_features(
    model: Any, *, questions: Sequence[list[int]], special: set[int], kind: str, batch_size: int
) -> Tensor:
    """Return [N, hidden] fp32 features of encoded questions.

    Args:
        model: A vision-language model without active adapters.
        questions: Token ids of each question (BOS where the tokenizer adds it).
        special: Ids that are not the question's own words and are left out of every mean.
        kind: ``question-mean`` (mean of the last hidden states), ``question-last`` (the last
            one), or ``embedding-mean`` (mean of the token embeddings).
        batch_size: Questions a forward; it changes speed only.

    Raises:
        ValueError: A question has no token of its own.
    """
    device = next(model.parameters()).device
    decoder, embeddings = model.get_decoder(), model.get_input_embeddings()
    if getattr(decoder.config, "use_bidirectional_attention", False):
        batch_size = 1  # PaliGemma's decoder reads padded batches in another direction than others
    features: list[Tensor | None] = [None] * len(questions)
    for rows in by_length([len(ids) for ids in questions], batch_size=batch_size):
        width = len(questions[rows[0]])
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        own = torch.zeros(len(rows), width, dtype=torch.bool)
        for place, row in enumerate(rows):
            tokens = questions[row]
            ids[place, : len(tokens)] = torch.tensor(tokens)
            mask[place, : len(tokens)] = 1
            own[place, : len(tokens)] = torch.tensor([token not in special for token in tokens])
        if not bool(own.any(dim=1).all()):
            raise ValueError("a question has no token of its own: it is empty or all special")
        ids, mask, own = ids.to(device), mask.to(device), own.to(device)
        if kind == "embedding-mean":
            states = embeddings(ids)
        else:
            states = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        states = states.float()
        if kind == "question-last":
            last = torch.where(own, torch.arange(width, device=device), -1).amax(dim=1)
            pooled = states[torch.arange(len(rows), device=device), last]
        else:
            pooled = (states * own[..., None]).sum(dim=1) / own.sum(dim=1, keepdim=True)
        for place, row in enumerate(rows):
            features[row] = pooled[place].cpu()
    return torch.stack([feature for feature in features if feature is not None])
