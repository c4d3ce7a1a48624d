"""Questions about scenes: how an object is referred to, and how a balanced set is chosen.

The ten tasks themselves are in `clmoe.data.scene_tasks`. Every question names its object by
properties that no other object of the scene shares, and never by the property it asks for.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from clmoe.data.scenes import Scene, Thing

_PAIRS = (
    ("color", "shape"), ("pattern", "shape"), ("size", "shape"), ("size", "color"),
    ("pattern", "color"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a scene and its answer; `kind` names the family of wordings."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Family:
    """One way to ask within a task.

    Attributes:
        kind: Name of the family, unique among all tasks.
        wordings: Templates whose fields `make` fills.
        make: Returns the fields and the answer for a scene, or None where it does not apply.
    """

    kind: str
    wordings: tuple[str, ...]
    make: Callable[[Scene, random.Random], tuple[dict[str, str], str] | None]

    def ask(self, scene: Scene, rng: random.Random) -> Asked | None:
        """One question of this family about `scene`, or None where the scene has no occasion."""
        made = self.make(scene, rng)
        if made is None:
            return None
        fields, answer = made
        return Asked(self.kind, rng.choice(self.wordings).format(**fields), answer)


def refer(scene: Scene, thing: Thing, rng: random.Random, *, hide: Sequence[str]) -> str | None:
    """A noun phrase that fits `thing` alone, without the properties in `hide`.

    Args:
        scene: The scene.
        thing: One of its objects.
        rng: Chooses among the phrases that fit.
        hide: Among "shape", "color", "pattern", "size" and "place".

    Returns:
        Words such as "red star", "striped object" or "object at the top left"; None if no phrase
        of at most two properties singles the object out.
    """
    keys = [k for k in ("color", "shape", "pattern", "size") if k not in hide]
    choices: list[tuple[str, ...]] = []
    choices.extend((k,) for k in keys[:3])
    choices.extend(pair for pair in _PAIRS if not set(pair) & set(hide))
    fits = [c for c in choices if _alone(scene, thing, c)]
    short: list[tuple[str, ...]] = [c for c in fits if len(c) == 1]
    if short and rng.random() < 0.75:
        fits = short
    if "place" not in hide and thing.cell >= 0 and (not fits or rng.random() < 0.15):
        return f"object at the {thing.place}"
    if not fits:
        return None
    chosen = rng.choice(fits)
    adjectives = " ".join(getattr(thing, k) for k in chosen if k != "shape")
    noun = thing.shape if "shape" in chosen else rng.choice(("object", "one", "thing"))
    return f"{adjectives} {noun}".strip()


def _alone(scene: Scene, thing: Thing, keys: Iterable[str]) -> bool:
    wanted = [(k, getattr(thing, k)) for k in keys]
    return sum(all(getattr(t, k) == v for k, v in wanted) for t in scene.things) == 1


def choose(
    scenes: Sequence[Scene],
    families: Sequence[Family],
    *,
    count: int,
    rng: random.Random,
    tries: int = 2,
) -> list[tuple[int, Asked]]:
    """Choose `count` questions, as even as possible over families and over answers in a family.

    Args:
        scenes: What to ask about.
        families: The families of one task.
        count: How many questions are wanted.
        rng: Decides everything that is left open.
        tries: How many questions of each family are tried on each scene.

    Returns:
        Pairs of the scene's position and the question, in random order; fewer than `count` if the
        scenes offer no more distinct ones.
    """
    offers: dict[str, dict[str, list[tuple[int, Asked]]]] = {f.kind: {} for f in families}
    taken: set[tuple[int, str]] = set()
    for position in rng.sample(range(len(scenes)), len(scenes)):
        for family in families:
            for _ in range(tries):
                asked = family.ask(scenes[position], rng)
                if asked and (position, asked.question) not in taken:
                    taken.add((position, asked.question))
                    pool = offers[family.kind].setdefault(asked.answer, [])
                    pool.append((position, asked))
    rounds = _rounds(offers)
    chosen = [pair for pair, _ in zip(rounds, range(count), strict=False)]
    rng.shuffle(chosen)
    return chosen


def _rounds(
    offers: dict[str, dict[str, list[tuple[int, Asked]]]],
) -> Iterator[tuple[int, Asked]]:
    """Take from the families in turn, from each its least used answer that is still on offer."""
    used: dict[str, Counter[str]] = defaultdict(Counter)
    while any(offers.values()):
        for kind, answers in offers.items():
            if not answers:
                continue
            answer = min(answers, key=lambda a: (used[kind][a], a))
            used[kind][answer] += 1
            yield answers[answer].pop()
            if not answers[answer]:
                del answers[answer]


def majority_rate(asked: Iterable[Asked]) -> float:
    """The share, in percent, of the most frequent answer."""
    counts = Counter(a.answer for a in asked)
    return 100.0 * max(counts.values()) / counts.total()
