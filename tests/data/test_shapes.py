"""The built-in source: ten balanced tasks with computed answers."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from clmoe.data import scene_tasks as tasks
from clmoe.data.checks import Problems
from clmoe.data.example import Example
from clmoe.data.scene_questions import Asked, choose, majority_rate, refer
from clmoe.data.scenes import Scene, Thing, split_of
from clmoe.data.sources.registry import LoadedSource, get_source
from clmoe.data.sources.shapes import MAJORITY_BOUND, PER_TASK, ShapesSource, split_questions
from clmoe.recipe.schema import Data

ORDER = (
    "recognition", "location", "judge", "commonsense", "count",
    "action", "color", "type", "subcategory", "causal",
)  # fmt: skip
SCENE = Scene(
    (
        Thing("circle", "red", "solid", "large", "", 0),
        Thing("arrow", "blue", "hollow", "small", "up", 5),
        Thing("square", "red", "striped", "small", "", 7),
    )
)


@pytest.fixture(scope="module")
def questions() -> dict[str, dict[str, list[Asked]]]:
    made = {split: split_questions(0, split=split, per_task=n)[1] for split, n in PER_TASK.items()}
    return {
        split: {task: [a for _, a in pairs] for task, pairs in by_task.items()}
        for split, by_task in made.items()
    }


def load(folder: Path, **settings: object) -> LoadedSource:
    config = Data(train_per_task=30, val_per_task=10, test_per_task=20, **settings)
    return get_source("shapes").load(config, workspace=folder, report=Problems())


def rows_of(loaded: LoadedSource, split: str) -> list[Example]:
    return [row for (_, s), rows in loaded.examples.items() if s == split for row in rows]


def answers(task: str, wording: str, scene: Scene = SCENE) -> set[str]:
    """Every answer that the families of a task give to one exact question."""
    rng = random.Random(0)
    asked = [f.ask(scene, rng) for f in tasks.TASKS[task] for _ in range(1500)]
    return {a.answer for a in asked if a and a.question == wording}


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("recognition", "what is the blue one?", "arrow"),
        ("location", "where is the circle?", "northwest"),
        ("location", "how high is the arrow?", "medium"),
        ("judge", "is there a red circle?", "yes"),
        ("judge", "is the arrow not blue?", "no"),
        ("judge", "is the arrow not red?", "yes"),
        ("judge", "is the circle above the arrow?", "yes"),
        ("judge", "is the circle below the arrow?", "no"),
        ("commonsense", "could the solid object roll?", "yes"),
        ("commonsense", "could the blue thing roll?", "no"),
        ("commonsense", "would the arrow float on water?", "yes"),
        ("count", "how many red objects are there?", "2"),
        ("count", "how many objects are there?", "3"),
        ("action", "what is the blue thing doing?", "rising"),
        ("action", "what is the solid thing doing?", "rolling"),
        ("action", "where is the arrow going?", "skyward"),
        ("color", "what color is the arrow?", "blue"),
        ("color", "what color do most objects have?", "red"),
        ("type", "what type of material is the arrow?", "glass"),
        ("type", "what type of thing is the blue object?", "sign"),
        ("subcategory", "what kind of color is the arrow?", "cool"),
        ("subcategory", "what kind of shape is the striped object?", "boxy"),
        ("causal", "why is the striped object not rolling?", "corners"),
    ],
)
def test_answers_on_a_scene_worked_out_by_hand(task: str, question: str, answer: str) -> None:
    assert answers(task, question) == {answer}


def test_references_fit_one_object_and_hide_what_is_asked() -> None:
    rng = random.Random(0)
    for _ in range(200):
        assert refer(SCENE, SCENE.things[1], rng, hide=("shape", "place")) != "arrow"
        words = refer(SCENE, SCENE.things[0], rng, hide=("place",))
        assert words is not None
        assert words not in ("red object", "red one", "red thing")


def test_twins_cannot_be_told_apart() -> None:
    twins = Scene(tuple(Thing("star", "red", "solid", "large", "", c) for c in (1, 2)))
    rng = random.Random(0)
    assert refer(twins, twins.things[0], rng, hide=("place",)) is None
    assert refer(twins, twins.things[0], rng, hide=()) == "object at the top"


def test_there_are_ten_tasks_in_the_papers_order() -> None:
    assert ShapesSource().default_order == ORDER == tuple(tasks.TASKS)
    kinds = [f.kind for families in tasks.TASKS.values() for f in families]
    assert len(kinds) == len(set(kinds))


def test_default_sizes(questions: dict[str, dict[str, list[Asked]]]) -> None:
    for split, by_task in questions.items():
        assert {task: len(asked) for task, asked in by_task.items()} == dict.fromkeys(
            ORDER, PER_TASK[split]
        )


def test_no_answer_can_be_guessed(questions: dict[str, dict[str, list[Asked]]]) -> None:
    """Neither the most frequent answer nor the question's own text gives the answer away."""
    for task in ORDER:
        train, test = questions["train"][task], questions["test"][task]
        yes_no = task in ("judge", "commonsense")
        assert majority_rate(test) <= (MAJORITY_BOUND if yes_no else 30.0), task
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for a in train:
            seen[a.question][a.answer] += 1
            seen[a.kind][a.answer] += 1
        blind = [
            seen[a.question if seen[a.question].total() > 2 else a.kind].most_common(1)[0][0]
            for a in test
        ]
        rate = sum(g == a.answer for g, a in zip(blind, test, strict=True)) / len(test)
        assert rate <= (0.58 if yes_no else 0.45), (task, rate)


def test_tasks_are_told_apart_by_words_but_not_by_the_first_one(
    questions: dict[str, dict[str, list[Asked]]],
) -> None:
    def bag(a: Asked) -> Counter[str]:
        return Counter(a.question.rstrip("?").split())

    centroids = {
        task: {w: n / len(asked) for w, n in sum(map(bag, asked), Counter()).items()}
        for task, asked in questions["val"].items()
    }
    first: dict[str, Counter[str]] = defaultdict(Counter)
    for task, asked in questions["val"].items():
        first_words = Counter(a.question.split()[0] for a in asked)
        for word, n in first_words.items():
            first[word][task] += n
    assert len(first["what"]) >= 7
    right_by_first = sum(c.most_common(1)[0][1] for c in first.values())
    assert right_by_first / sum(c.total() for c in first.values()) < 0.6

    def nearest(a: Asked) -> str:
        words = bag(a)

        def distance(task: str) -> float:
            mean = centroids[task]
            return sum((words[w] - mean.get(w, 0.0)) ** 2 for w in {*words, *mean})

        return min(ORDER, key=distance)

    tested = [(task, a) for task in ORDER for a in questions["val"][task][:60]]
    hits = sum(nearest(a) == task for task, a in tested)
    assert hits / len(tested) > 0.75


def test_answers_are_short_lower_case_words(
    questions: dict[str, dict[str, list[Asked]]],
) -> None:
    said = {a.answer for asked in questions["train"].values() for a in asked}
    assert all(answer == answer.lower() and " " not in answer for answer in said)


def test_loading_writes_pictures_named_by_scene(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.order == ORDER
    assert {key: len(rows) for key, rows in loaded.examples.items()} == {
        (task, split): n
        for split, n in (("train", 30), ("val", 10), ("test", 20))
        for task in ORDER
    }
    for (task, split), rows in loaded.examples.items():
        assert len({r.question_id for r in rows}) == len(rows)
        for row in rows:
            assert (row.task, row.split) == (task, split)
            assert split_of(Path(row.image).stem) == split
            assert row.kind in {f.kind for f in tasks.TASKS[task]}
            assert (loaded.image_root / row.image).is_file()
    with Image.open(loaded.image_root / rows[0].image) as image:
        assert (image.mode, image.size) == ("RGB", (48, 48))
    assert set(loaded.statistics["majority_answer_percent"]) == set(ORDER)
    assert loaded.statistics["scenes"]["test"] == len({r.image for r in rows_of(loaded, "test")})


def test_loading_repeats_and_follows_the_seed(tmp_path: Path) -> None:
    first, again = load(tmp_path / "a"), load(tmp_path / "b")
    other = load(tmp_path / "c", seed=1)
    assert first.examples == again.examples
    assert first.examples != other.examples
    files = sorted(p.name for p in first.image_root.iterdir())
    assert files == sorted(p.name for p in again.image_root.iterdir())
    assert (first.image_root / files[0]).read_bytes() == (again.image_root / files[0]).read_bytes()


def test_only_the_tasks_and_splits_asked_for(tmp_path: Path) -> None:
    loaded = load(tmp_path, tasks=("color", "count"), splits=("val",))
    assert set(loaded.examples) == {("color", "val"), ("count", "val")}


def test_choosing_is_even_over_families_and_answers() -> None:
    scenes, _ = split_questions(5, split="train", per_task=200)
    chosen = [a for _, a in choose(scenes, tasks.TASKS["type"], count=180, rng=random.Random(0))]
    by_kind = Counter(a.kind for a in chosen)
    assert by_kind == {"material": 90, "thing": 90}
    for kind in by_kind:
        counts = Counter(a.answer for a in chosen if a.kind == kind).values()
        assert max(counts) - min(counts) <= 1
