"""The answer normalisation of the official VQA evaluation, misprints and quirks included.

Its tables are data (`vqa_normalisation.json`, BSD 2-Clause, notice beside it). In order: white
space, punctuation, periods, lower case, number words and articles, contractions.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official program passes a flag where a count belongs


@dataclass(frozen=True)
class _Tables:
    contractions: dict[str, str]
    number_words: dict[str, str]
    articles: frozenset[str]
    punctuation: tuple[str, ...]


@cache
def _tables() -> _Tables:
    text = files("clmoe.metrics").joinpath("vqa_normalisation.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    return _Tables(
        contractions=raw["contractions"],
        number_words=raw["number_words"],
        articles=frozenset(raw["articles"]),
        punctuation=tuple(raw["punctuation"]),
    )


def clean_space(text: str) -> str:
    """Line breaks and tabs become spaces; spaces at the ends go. Applied to every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise(text: str) -> str:
    """The official normal form of an answer whose space is already clean.

    A punctuation character is deleted wherever it stands if it touches a space anywhere in the
    text, or if the text has a digit, a comma and a digit in a row; otherwise it becomes a space.
    "none" becomes "0"; contractions without an apostrophe get one.
    """
    tables = _tables()
    comma = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in tables.punctuation:
        deleted = comma or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if deleted else " ")
    result = _PERIOD.sub("", result, count=_MOST_PERIODS)
    words = (tables.number_words.get(word, word) for word in result.lower().split())
    return " ".join(
        tables.contractions.get(word, word) for word in words if word not in tables.articles
    )
