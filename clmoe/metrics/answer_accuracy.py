"""The accuracy of one answer, by named scorers.

- exact: equal to the one answer after stripping, whatever the case (CL-MoE's evaluation).
- vqa: the official VQA v2 evaluation, quirks included: answers are normalised only where the
  human answers are not all equal; then the mean over annotators of min(matches among the
  others / 3, 1), which for ten annotators is 0, .3, .6, .9, 1.
- vqa-lenient: the same, always normalising both sides.

And one for sentences, such as captions: rouge-l, the F-measure of the longest common subsequence of
words (Lin 2004), for the best of the given answers. Others are added by an entry point.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from math import fsum
from typing import Any

from clmoe.errors import UsageError
from clmoe.metrics.vqa_normalisation import clean_space, normalise

FEWEST_ANSWERS = 4


@dataclass(frozen=True)
class Score:
    """The accuracy of one answer.

    Attributes:
        value: In [0, 1]; None where the scorer is not defined for this question.
        reason: Why it is None; else None.
    """

    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Tally:
    """The accuracy of many answers.

    Attributes:
        correct: The sum of scores; None if one question has none.
        total: How many questions were asked.
        reason: Why `correct` is None; else None.
    """

    correct: float | None
    total: int
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The tally as a plain dictionary, for JSON."""
        return asdict(self)


Scorer = Callable[[str, str, Sequence[str]], Score]
"""(prediction, the one answer, human answers) -> score. `answers` may be empty."""


def exact(prediction: str, answer: str, answers: Sequence[str] = ()) -> Score:
    """1 if the answers are equal after stripping and upper-casing, else 0."""
    return Score(float(prediction.strip().upper() == answer.strip().upper()))


def vqa(prediction: str, answer: str, answers: Sequence[str]) -> Score:
    """The official VQA v2 accuracy; `answer` is not used."""
    human = [clean_space(text) for text in answers]
    given = clean_space(prediction)
    if len(set(human)) > 1:
        human, given = [normalise(text) for text in human], normalise(given)
    return leave_one_out(human.count(given), annotators=len(human))


def vqa_lenient(prediction: str, answer: str, answers: Sequence[str]) -> Score:
    """The official formula with both sides always normalised; `answer` is not used."""
    human = [normalise(clean_space(text)) for text in answers]
    return leave_one_out(human.count(normalise(clean_space(prediction))), annotators=len(human))


def rouge_l(prediction: str, answer: str, answers: Sequence[str] = ()) -> Score:
    """ROUGE-L of the prediction and the best of all answers, lower case, split at white space."""
    return Score(max(_f_measure(prediction, reference) for reference in (answer, *answers)))


def _f_measure(prediction: str, reference: str) -> float:
    said, wanted = prediction.lower().split(), reference.lower().split()
    row = [0] * (len(wanted) + 1)  # longest common subsequences with the words said so far
    for word in said:
        before = 0
        for place, other in enumerate(wanted, start=1):
            before, row[place] = (
                row[place],
                before + 1 if word == other else max(row[place], row[place - 1]),
            )
    return 2 * row[-1] / (len(said) + len(wanted)) if said and wanted else float(said == wanted)


SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "vqa": vqa,
    "vqa-lenient": vqa_lenient,
    "rouge-l": rouge_l,
}
"""Scorers by name. A package adds one by an entry point of the group ``clmoe.scorers``."""
ENTRY_POINTS = "clmoe.scorers"


def get_scorer(name: str) -> Scorer:
    """The scorer of that name.

    Raises:
        UsageError: There is none; the hint names the nearest one.
    """
    if name in SCORERS:
        return SCORERS[name]
    added = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in added:
        scorer: Scorer = added[name].load()
        return scorer
    known = [*SCORERS, *added]
    near = difflib.get_close_matches(name, known, n=1)
    raise UsageError(
        f"there is no scorer {name!r}; there are {', '.join(known)}",
        hint=f"did you mean {near[0]}?" if near else None,
    )


def leave_one_out(matches: int, *, annotators: int) -> Score:
    """The mean over annotators of min(matches among the others / 3, 1), in closed form.

    Args:
        matches: How many annotators gave the predicted answer.
        annotators: How many there are.
    """
    if annotators < FEWEST_ANSWERS:
        return Score(
            None, f"needs at least {FEWEST_ANSWERS} human answers a question, found {annotators}"
        )
    # A matching annotator sees one match less among the others.
    thirds = matches * min(matches - 1, 3) + (annotators - matches) * min(matches, 3)
    return Score(max(thirds, 0) / (3 * annotators))


def score_all(
    answered: Iterable[tuple[str, str, Sequence[str]]], *, scorers: Sequence[str]
) -> dict[str, Tally]:
    """Scores the same questions by several scorers.

    Args:
        answered: (prediction, the one answer, human answers) of every question that was asked.
        scorers: Names in `SCORERS`.

    Returns:
        The tally of each scorer, by name.
    """
    questions = list(answered)
    return {name: _tally([get_scorer(name)(*q) for q in questions]) for name in scorers}


def _tally(scores: Sequence[Score]) -> Tally:
    reasons = [score.reason for score in scores if score.value is None]
    if reasons:
        return Tally(None, len(scores), f"{reasons[0]} ({len(reasons)} of {len(scores)} questions)")
    return Tally(fsum(score.value for score in scores if score.value is not None), len(scores))
