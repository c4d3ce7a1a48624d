"""Batches of encoded conversations: padding, order, and pictures.

Orders depend on their generator alone, so a resumed training sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe.data.prompts import IGNORE, Encoded


@dataclass(frozen=True)
class Batch:
    """Padded conversations.

    Attributes:
        input_ids: [batch, tokens].
        attention_mask: [batch, tokens], 1 on real tokens.
        labels: [batch, tokens], ``IGNORE`` where nothing is supervised.
        question: [batch, tokens] bool, a question's own words.
        rows: Positions of the samples in their data set, [batch].
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    question: Tensor
    rows: list[int]


def collate(samples: Sequence[Encoded], *, rows: Sequence[int], pad: int, left: bool) -> Batch:
    """Pad to the longest sample, on the left for generation, on the right for training."""
    width = max(len(sample.input_ids) for sample in samples)

    def stack(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
        fill = [[value] * (width - len(ids)) for ids in sequences]
        padded = [
            [*f, *ids] if left else [*ids, *f] for f, ids in zip(fill, sequences, strict=True)
        ]
        return torch.tensor(padded, dtype=torch.long)

    return Batch(
        input_ids=stack([s.input_ids for s in samples], pad),
        attention_mask=stack([[1] * len(s.input_ids) for s in samples], 0),
        labels=stack([s.labels for s in samples], IGNORE),
        question=stack([[int(q) for q in s.question] for s in samples], 0).bool(),
        rows=list(rows),
    )


def training_order(samples: int, *, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Shuffle the samples of one epoch and cut them into batches; the last may be smaller."""
    order = torch.randperm(samples, generator=generator).tolist()
    return [order[i : i + batch_size] for i in range(0, samples, batch_size)]


def by_length(lengths: Sequence[int], *, batch_size: int) -> Iterator[list[int]]:
    """Batches of similar length, the longest first: little padding, early memory errors."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
