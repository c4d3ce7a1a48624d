"""Batches of encoded conversations: padding, order, and pictures.

Orders depend on their generator alone, so a resumed training sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe.data.prompts import IGNORE, Encoded

CHUNK = 50
"""Batches among which samples are sorted by length: enough to save padding, few enough to mix."""


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


def training_order(
    lengths: Sequence[int],
    *,
    batch_size: int,
    generator: torch.Generator,
    by_length: bool = False,
) -> list[list[int]]:
    """Shuffle the samples of one epoch and cut them into batches, one of which may be smaller.

    Args:
        lengths: Tokens of every sample.
        batch_size: Samples a batch.
        generator: Decides the order, alone.
        by_length: Put samples of similar length together (they are sorted within chunks of
            ``CHUNK`` batches of the shuffled order, and the batches shuffled again), and begin with
            the longest sample's batch, so that memory is exhausted at once or never.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    if by_length:
        chunk = CHUNK * batch_size
        order = [
            row
            for start in range(0, len(order), chunk)
            for row in sorted(order[start : start + chunk], key=lambda row: -lengths[row])
        ]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if by_length:
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        batches = [batches[number] for number in shuffled]
        longest = max(range(len(batches)), key=lambda n: max(lengths[row] for row in batches[n]))
        batches.insert(0, batches.pop(longest))
    return batches


def with_replay(
    rows: Sequence[int], *, first: int, samples: int, generator: torch.Generator
) -> list[int]:
    """Put a drawn sample of memory after each row: a joint batch, one to one.

    Args:
        rows: A batch of the current task.
        first: Position of the first sample of memory.
        samples: All samples; ``first`` where there is no memory.
        generator: Draws: each at most once where the memory is large enough.
    """
    size = samples - first
    if size == 0:
        return list(rows)
    if size >= len(rows):
        drawn = torch.randperm(size, generator=generator)[: len(rows)]
    else:
        drawn = torch.randint(size, (len(rows),), generator=generator)
    return [row for pair in zip(rows, (drawn + first).tolist(), strict=True) for row in pair]


def by_length(lengths: Sequence[int], *, batch_size: int) -> Iterator[list[int]]:
    """Batches of similar length, the longest first: little padding, early memory errors."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
