from __future__ import annotations

import torch

from clmoe.data.batches import by_length, collate, training_order
from clmoe.data.prompts import IGNORE, Encoded

SHORT = Encoded([1, 5, 9], [IGNORE, IGNORE, 9], [False, True, False])
LONG = Encoded([1, 5, 6, 7, 8], [IGNORE, IGNORE, IGNORE, 7, 8], [False, True, True, False, False])


def test_padding_sides() -> None:
    right = collate([SHORT, LONG], rows=[4, 2], pad=0, left=False)
    assert right.input_ids.tolist() == [[1, 5, 9, 0, 0], [1, 5, 6, 7, 8]]
    assert right.labels.tolist()[0] == [IGNORE, IGNORE, 9, IGNORE, IGNORE]
    assert right.rows == [4, 2]
    left = collate([SHORT, LONG], rows=[0, 1], pad=0, left=True)
    assert left.input_ids.tolist()[0] == [0, 0, 1, 5, 9]
    assert left.attention_mask.tolist()[0] == [0, 0, 1, 1, 1]
    assert left.question.tolist()[0] == [False, False, False, True, False]


def test_every_sample_once_an_epoch() -> None:
    order = training_order(10, batch_size=4, generator=torch.Generator().manual_seed(3))
    assert [len(batch) for batch in order] == [4, 4, 2]
    assert sorted(row for batch in order for row in batch) == list(range(10))
    again = training_order(10, batch_size=4, generator=torch.Generator().manual_seed(3))
    assert order == again


def test_longest_first() -> None:
    assert list(by_length([3, 9, 4, 9], batch_size=3)) == [[1, 3, 2], [0]]
