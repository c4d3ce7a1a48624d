"""The text around a question, its picture and its answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    """Text around a question: ``start + picture + between + question + after + gap + answer``.

    Attributes:
        name: The template's name.
        start: Text before the picture of the first turn.
        between: Text between the picture and the question of the first turn.
        again: Text before the question of every later turn; None where there is one turn only.
        after: Text between a question and its answer (the generation prompt ends with it).
        gap: What separates ``after`` from the answer when training.
        end: The token that ends an answer; None: the tokenizer's end of text.
    """

    name: str
    start: str
    between: str
    again: str | None
    after: str
    gap: str = " "
    end: str | None = None
