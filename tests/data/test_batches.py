from __future__ import annotations

import random

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
    order = training_order([5] * 10, batch_size=4, generator=torch.Generator().manual_seed(3))
    assert [len(batch) for batch in order] == [4, 4, 2]
    assert sorted(row for batch in order for row in batch) == list(range(10))
    again = training_order([5] * 10, batch_size=4, generator=torch.Generator().manual_seed(3))
    assert order == again


def test_batches_of_similar_length_begin_with_the_longest() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(5, 90) for _ in range(997)]
    orders = [
        training_order(
            lengths, batch_size=8, generator=torch.Generator().manual_seed(3), by_length=grouped
        )
        for grouped in (False, True)
    ]
    padded = [
        sum(len(rows) * max(lengths[row] for row in rows) for rows in order) for order in orders
    ]
    assert sorted(row for rows in orders[1] for row in rows) == list(range(997))
    assert sorted(map(len, orders[1])) == [5] + [8] * 124
    assert max(lengths) == max(lengths[row] for row in orders[1][0])
    assert padded[1] < 0.6 * padded[0]
    assert padded[1] < 1.05 * sum(lengths)
    widths = [max(lengths[row] for row in rows) for rows in orders[1][1:]]
    assert widths != sorted(widths, reverse=True)  # otherwise shuffled, chunk by chunk


def test_longest_first() -> None:
    assert list(by_length([3, 9, 4, 9], batch_size=3)) == [[1, 3, 2], [0]]
