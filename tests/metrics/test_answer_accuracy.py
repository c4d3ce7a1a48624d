"""Accuracy of one answer: closed forms against an independent program, quirks one by one."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clmoe.errors import UsageError
from clmoe.metrics import answer_accuracy
from clmoe.metrics.answer_accuracy import (
    SCORERS,
    Score,
    Scorer,
    exact,
    get_scorer,
    leave_one_out,
    rouge_l,
    score_all,
    vqa,
    vqa_lenient,
)
from clmoe.metrics.vqa_normalisation import clean_space, normalise

TEN_YES = ["yes"] * 10


def slow_leave_one_out(prediction: str, answers: list[str]) -> float:
    """The definition: remove each annotator in turn and compare with the nine others."""
    parts = []
    for left_out in range(len(answers)):
        others = [answer for i, answer in enumerate(answers) if i != left_out]
        parts.append(min(sum(other == prediction for other in others) / 3, 1.0))
    return sum(parts) / len(parts)


def slow_normalise(text: str, tables: dict) -> str:
    """The rule as the data file states it in words, character by character."""
    groups = re.findall(r"[0-9],[0-9]", text)
    out = []
    for i, character in enumerate(text):
        if character in tables["punctuation"]:
            touching = any(
                other == character
                and (text[max(j - 1, 0) : j] == " " or text[j + 1 : j + 2] == " ")
                for j, other in enumerate(text)
            )
            out.append("" if touching or groups else " ")
        else:
            out.append(text[i])
    joined, kept, removed = "".join(out), [], 0
    for i, character in enumerate(joined):
        if character == "." and not joined[i + 1 : i + 2].isdecimal() and removed < 32:
            removed += 1
        else:
            kept.append(character)
    words = []
    for word in "".join(kept).lower().split():
        word = tables["number_words"].get(word, word)
        if word not in tables["articles"]:
            words.append(tables["contractions"].get(word, word))
    return " ".join(words)


@pytest.fixture(scope="module")
def tables(repository: Path) -> dict:
    return json.loads((repository / "clmoe/metrics/vqa_normalisation.json").read_text())


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_ten_annotators_give_the_five_known_scores(matches: int, score: float) -> None:
    answers = ["right"] * matches + [f"wrong {i}" for i in range(10 - matches)]
    assert leave_one_out(matches, annotators=10).value == pytest.approx(score, abs=1e-15)
    assert slow_leave_one_out("right", answers) == pytest.approx(score)
    assert vqa("right", "", answers).value == pytest.approx(score)


@given(st.integers(0, 12), st.integers(0, 12))
def test_closed_form_equals_the_definition_for_any_number_of_annotators(
    matches: int, others: int
) -> None:
    answers = ["x"] * matches + ["y"] * others
    score = leave_one_out(matches, annotators=len(answers))
    if len(answers) < 4:
        assert score.value is None
        assert "needs at least 4 human answers" in (score.reason or "")
    else:
        assert score.value == pytest.approx(slow_leave_one_out("x", answers))
        assert 0 <= score.value <= 1


def test_exact_strips_and_ignores_case_and_nothing_else() -> None:
    assert exact(" Dog\n", "dog").value == 1
    assert exact("dog.", "dog").value == 0
    assert exact("the dog", "dog").value == 0
    assert exact("", "dog").value == 0


def test_unanimous_answers_are_not_normalised_by_the_official_program() -> None:
    assert vqa("Yes", "yes", TEN_YES).value == 0
    assert vqa("yes", "yes", TEN_YES).value == 1
    assert vqa_lenient("Yes.", "yes", TEN_YES).value == 1
    assert vqa("Yes.", "yes", [*TEN_YES[:9], "no"]).value == 1


def test_unanimity_is_judged_after_cleaning_white_space() -> None:
    answers = [*TEN_YES[:9], " yes\t"]
    assert vqa("Yes", "yes", answers).value == 0
    assert vqa("\nyes ", "yes", answers).value == 1


def test_unanimity_is_judged_before_normalising() -> None:
    assert vqa("Yes", "yes", [*TEN_YES[:9], "Yes"]).value == 1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("none", "0"),
        ("Ten", "10"),
        ("the red bus", "red bus"),
        ("A", ""),
        ("dont", "don't"),
        ("cant stop", "can't stop"),
        ("red.", "red"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("a-b -c", "ab c"),
        ("1,000", "1000"),
        ("a,b", "b"),
        ("1,000 b/c", "1000 bc"),
        ("let's", "let's"),
        ("it's", "it's"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_normal_forms_worked_out_by_hand(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_at_most_32_periods_are_removed() -> None:
    assert normalise("." * 40 + "x") == "." * 8 + "x"


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet=" .,/-?'aeAtn159()", max_size=14) | st.text(max_size=10))
def test_normalisation_equals_a_slow_version(tables: dict, text: str) -> None:
    cleaned = clean_space(text)
    assert normalise(cleaned) == slow_normalise(cleaned, tables)


@pytest.mark.parametrize("name", ["vqa", "vqa-lenient"])
def test_too_few_human_answers_give_no_score(name: str) -> None:
    tally = score_all([("a", "a", ["a"]), ("a", "a", ["a"] * 10)], scorers=[name])[name]
    assert tally.correct is None
    assert tally.total == 2
    assert tally.reason == "needs at least 4 human answers a question, found 1 (1 of 2 questions)"


def test_totals_count_what_was_asked() -> None:
    answered = [("dog", "dog", []), ("", "cat", []), ("Cat", "cat", [])]
    tally = score_all(answered, scorers=["exact"])["exact"]
    assert (tally.correct, tally.total, tally.reason) == (2, 3, None)


def test_an_unknown_scorer_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no scorer 'vqa-lenent'") as caught:
        get_scorer("vqa-lenent")
    assert caught.value.hint == "did you mean vqa-lenient?"
    assert set(SCORERS) == {"exact", "vqa", "vqa-lenient", "rouge-l"}


def test_the_licence_notice_lies_beside_the_tables(repository: Path) -> None:
    notice = repository / "clmoe/metrics/vqa_normalisation.LICENSE.txt"
    assert "Aishwarya Agrawal" in notice.read_text(encoding="utf-8")


def test_real_questions(shared_data: Path, tables: dict) -> None:
    """Fast and slow agree on 800 real questions, and the quirks cost what they should."""
    path = shared_data / "vqa_v2_sample/v2_mscoco_val2014_annotations.json"
    annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    assert len(annotations) == 800
    means = Counter()
    for annotation in annotations:
        answers = [entry["answer"] for entry in annotation["answers"]]
        best = annotation["multiple_choice_answer"]
        for kind, prediction in (
            ("plain", best),
            ("capital", best.capitalize()),
            ("period", best.capitalize() + "."),
            ("second", answers[1]),
        ):
            score = vqa(prediction, best, answers).value
            assert score is not None
            human, given_answer = answers, prediction
            if len(set(answers)) > 1:
                human = [slow_normalise(text, tables) for text in answers]
                given_answer = slow_normalise(prediction, tables)
            assert score == pytest.approx(slow_leave_one_out(given_answer, human))
            lenient = vqa_lenient(prediction, best, answers).value
            assert lenient is not None
            assert lenient >= score or len(set(answers)) > 1
            means[kind] += score / 8
            means[kind + ", lenient"] += lenient / 8
    changed = sum(
        len({a["answer"] for a in x["answers"]}) == 1
        and x["multiple_choice_answer"].capitalize() != x["multiple_choice_answer"]
        for x in annotations
    )
    assert means["plain"] > 80
    assert means["plain"] - means["capital"] == pytest.approx(changed / 8)
    assert changed > 20
    assert means["capital"] >= means["period"]
    assert means["period, lenient"] == pytest.approx(means["plain, lenient"], abs=0.5)


def test_rouge_l_by_hand() -> None:
    # "a red star" and "one red big star here": common "red star", F = 2 * 2 / (3 + 5)
    assert rouge_l("a red star", "one red big star here").value == pytest.approx(0.5)
    assert rouge_l("A star", "no", ("a STAR",)).value == 1.0
    assert rouge_l("star red", "red star").value == 0.5
    assert rouge_l("", "red").value == 0.0
    # against the textbook table of longest common subsequences
    words = "a b c".split()
    draw = random.Random(0)
    for _ in range(50):
        one = [draw.choice(words) for _ in range(draw.randint(1, 6))]
        two = [draw.choice(words) for _ in range(draw.randint(1, 6))]
        longest = max(
            len(part)
            for size in range(len(one) + 1)
            for part in combinations(one, size)
            if is_within(part, two)
        )
        expected = 2 * longest / (len(one) + len(two))
        assert rouge_l(" ".join(one), " ".join(two)).value == pytest.approx(expected)


def is_within(part: tuple[str, ...], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


def test_a_scorer_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "length"

        def load(self) -> Scorer:
            return lambda prediction, answer, answers: Score(float(len(prediction) == len(answer)))

    monkeypatch.setattr(answer_accuracy, "entry_points", lambda group: [Point()])
    assert get_scorer("length")("four", "five", ()).value == 1.0
    with pytest.raises(UsageError, match="there is no scorer 'lenght'; there are .*length"):
        get_scorer("lenght")
