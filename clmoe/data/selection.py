"""Choosing questions: a validation split by image, equal answers, and a limit per task.

Every choice follows from `data.seed` and the questions of that one task and split, so that leaving
another task out changes nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from clmoe.data.example import Example


def validation_images(images: Iterable[str], *, fraction: float, seed: int) -> frozenset[str]:
    """Choose the images whose questions become the validation split, for all tasks alike.

    Args:
        images: The images of every training question.
        fraction: Expected share of images to choose; at least one is, unless the share is 0.
        seed: `data.seed`.
    """
    ranks = {image: _rank(image, seed=seed) for image in images}
    if not ranks or fraction == 0:
        return frozenset()
    nearest = min(ranks.values())
    return frozenset(image for image, rank in ranks.items() if rank <= max(fraction, nearest))


def cut_validation(
    training: Sequence[Example], chosen: frozenset[str]
) -> tuple[list[Example], list[Example]]:
    """Return the questions that stay in train, and those of the chosen images, now in val."""
    stay = [example for example in training if example.image not in chosen]
    cut = [replace(example, split="val") for example in training if example.image in chosen]
    return stay, cut


def choose(
    examples: Sequence[Example], *, limit: int | None, balance: bool, seed: int
) -> list[Example]:
    """Return a random part of the questions of one task and split, in their original order.

    Args:
        examples: All questions there are.
        limit: The most that may be kept, or None for all.
        balance: Keep equally many of every answer (to within one, where `limit` does not divide
            by the number of answers): as many as the rarest has.
        seed: `data.seed`.
    """
    if not examples:
        return []
    task, split = examples[0].task, examples[0].split
    generator = random.Random(f"{seed}/{task}/{split}")
    if balance:
        positions = _balanced(examples, limit=limit, generator=generator)
    elif limit is not None and limit < len(examples):
        positions = generator.sample(range(len(examples)), limit)
    else:
        return list(examples)
    return [examples[position] for position in sorted(positions)]


def _balanced(
    examples: Sequence[Example], *, limit: int | None, generator: random.Random
) -> list[int]:
    by_answer: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        by_answer.setdefault(example.answer, []).append(position)
    rarest = min(len(positions) for positions in by_answer.values())
    each, more = rarest, 0
    if limit is not None and limit < rarest * len(by_answer):
        each, more = divmod(limit, len(by_answer))
    chosen: list[int] = []
    for number, answer in enumerate(sorted(by_answer)):
        chosen += generator.sample(by_answer[answer], each + (number < more))
    return chosen


def _rank(image: str, *, seed: int) -> float:
    """Return a number in [0, 1) that depends on the image and the seed alone."""
    digest = hashlib.sha256(f"{seed}/{image}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
