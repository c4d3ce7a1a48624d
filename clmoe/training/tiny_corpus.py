"""What the built-in base learns from: scenes of the pretraining split, and texts about them.

Most texts are general: captions of the whole scene or of one cell, and short questions on the
properties of objects in words that the ten tasks do not use (`shade`, `form`, `fill`, ...). Some
questions of every task follow, most of them answered by naming what is seen and not as the task
wants it, so that the base understands them and answers a little.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from clmoe.data import scene_tasks
from clmoe.data.scene_questions import Family, choose, refer
from clmoe.data.scene_tasks import about
from clmoe.data.scenes import (
    COLORS,
    DIRECTIONS,
    PATTERNS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    scene_stream,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five")
DIGITS = ("0", "1", "2", "3", "4", "5")
RELATIONS = ("above", "below", "left of", "right of")
ATTRIBUTES = {
    "form": "shape", "shade": "color", "fill": "pattern", "scale": "size", "spot": "place",
    "aim": "direction",
}  # fmt: skip
TASK_WORDS = tuple(
    dict.fromkeys(
        word
        for table in (
            scene_tasks.COMPASS, scene_tasks.LEVEL, scene_tasks.MOTION.values(),
            scene_tasks.HEADING.values(), scene_tasks.DOING.values(), scene_tasks.TONE.values(),
            scene_tasks.OUTLINE.values(), scene_tasks.LOOK.values(), scene_tasks.MATERIAL.values(),
            scene_tasks.THING.values(), scene_tasks.NO_ROLL.values(), DIGITS,
            ("empty", "size", "bright", "pattern"),
        )
        for word in table
    )
)  # fmt: skip
WORDS = (
    *SHAPES, *COLORS, *PATTERNS, *SIZES, *DIRECTIONS, *PLACES, *NUMBERS, *TASK_WORDS,
    "yes", "no", "not", "nothing",
)  # fmt: skip
"""Words that the base has seen as answers or can repeat: ten shapes and eleven colors first."""

Turn = tuple[str, str]


def pretraining_scenes(seed: int, *, grid: int, free: int) -> list[Scene]:
    """The scenes that the base sees: `grid` scenes on the grid, then `free` scenes off it."""
    return [
        *itertools.islice(scene_stream(seed, "pretrain"), grid),
        *itertools.islice(scene_stream(seed, "pretrain", free=True), free),
    ]


def stream_digest(scenes: Iterable[Scene]) -> str:
    """The sha256 over the scenes' own sha256, in order: proof of what was seen."""
    total = hashlib.sha256()
    for scene in scenes:
        total.update(scene.sha().encode())
    return total.hexdigest()


def caption(thing: Thing) -> str:
    """All properties of an object, such as "large red striped arrow up"."""
    words = f"{thing.size} {thing.color} {thing.pattern} {thing.shape} {thing.direction}"
    return words.strip()


def _describe(scene: Scene, rng: random.Random) -> Turn | None:
    if scene.things[0].cell < 0:
        return "describe", caption(scene.things[0])
    return "describe", "; ".join(f"{t.place}: {caption(t)}" for t in scene.things)


def _cell(scene: Scene, rng: random.Random) -> Turn | None:
    if scene.things[0].cell < 0:
        return None
    by_cell = {t.cell: t for t in scene.things}
    cell = rng.choice(tuple(by_cell)) if rng.random() < 0.75 else rng.randrange(9)
    return f"look {PLACES[cell]}", caption(by_cell[cell]) if cell in by_cell else "nothing"


def _attribute(scene: Scene, rng: random.Random) -> Turn | None:
    thing = rng.choice(scene.things)
    word = rng.choice(tuple(ATTRIBUTES))
    key = ATTRIBUTES[word]
    if (key == "place" and thing.cell < 0) or not getattr(thing, key):
        return None
    ref = refer(scene, thing, rng, hide=(key,))
    if ref is None:
        return None
    form = rng.choice(("{word} of {ref}", "give the {word} of the {ref}", "{ref}: {word}?"))
    return form.format(word=word, ref=ref), getattr(thing, key)


def _find(scene: Scene, rng: random.Random) -> Turn | None:
    if scene.things[0].cell < 0:
        return None
    key = rng.choice(("color", "shape", "pattern"))
    value = getattr(rng.choice(scene.things), key)
    places = [t.place for t in scene.things if getattr(t, key) == value]
    return f"find {value}", " and ".join(places)


def _present(scene: Scene, rng: random.Random) -> Turn | None:
    """Existence, with negation in half of the cases."""
    thing = rng.choice(scene.things)
    keys = rng.choice((("color",), ("shape",), ("pattern",), ("color", "shape"),
                       ("pattern", "shape"), ("size", "color")))  # fmt: skip
    values = {k: getattr(thing, k) for k in keys}
    if rng.random() < 0.55:
        key = rng.choice(keys)
        pool = {"color": tuple(COLORS), "shape": SHAPES, "pattern": PATTERNS, "size": SIZES}
        values[key] = rng.choice(pool[key])
    there = any(all(getattr(t, k) == v for k, v in values.items()) for t in scene.things)
    absent = rng.random() < 0.5
    question = f"{' '.join(values.values())} {'not present' if absent else 'present'}?"
    return question, "yes" if there != absent else "no"


def _matches(scene: Scene, rng: random.Random) -> Turn | None:
    """Whether an object has a property, with negation in half of the cases."""
    thing = rng.choice(scene.things)
    key = rng.choice(("color", "shape", "pattern", "size"))
    ref = refer(scene, thing, rng, hide=(key,))
    if ref is None:
        return None
    pool = {"color": tuple(COLORS), "shape": SHAPES, "pattern": PATTERNS, "size": SIZES}[key]
    value = getattr(thing, key) if rng.random() < 0.5 else rng.choice(pool)
    negated = rng.random() < 0.5
    holds = (getattr(thing, key) == value) != negated
    return f"{ref} = {'not ' if negated else ''}{value}?", "yes" if holds else "no"


def _total(scene: Scene, rng: random.Random) -> Turn | None:
    key = rng.choice(("color", "shape", "pattern", "all"))
    if key == "all":
        return "total", NUMBERS[len(scene.things)]
    pool = {"color": tuple(COLORS), "shape": SHAPES, "pattern": PATTERNS}[key]
    values = [getattr(t, key) for t in scene.things]
    value = rng.choice(values) if rng.random() < 0.8 else rng.choice(pool)
    return f"total {value}{'s' if key == 'shape' else ''}", NUMBERS[values.count(value)]


def _compare(scene: Scene, rng: random.Random) -> Turn | None:
    if len(scene.things) < 2:
        return None
    first, second = rng.sample(scene.things, 2)
    one = refer(scene, first, rng, hide=("place",))
    two = refer(scene, second, rng, hide=("place",))
    down, across = second.cell // 3 - first.cell // 3, second.cell % 3 - first.cell % 3
    held = dict(zip(RELATIONS, (down > 0, down < 0, across > 0, across < 0), strict=True))
    relation = rng.choice(RELATIONS)
    if one is None or two is None:
        return None
    return f"{one} {relation} {two}, true?", "yes" if held[relation] else "no"


def _say(scene: Scene, rng: random.Random) -> Turn | None:
    word = rng.choice(WORDS)
    return f"say {word}", word


_FORMS: tuple[tuple[Callable[[Scene, random.Random], Turn | None], float], ...] = (
    (_describe, 0.25), (_cell, 1.0), (_attribute, 6.0), (_find, 0.7), (_present, 1.2),
    (_matches, 1.2), (_total, 1.2), (_compare, 0.8), (_say, 0.4),
)  # fmt: skip


def general_turns(scene: Scene, rng: random.Random, *, count: int) -> list[Turn]:
    """`count` general questions about a scene with their answers."""
    forms, weights = zip(*_FORMS, strict=True)
    turns: list[Turn] = []
    while len(turns) < count:
        turn = rng.choices(forms, weights)[0](scene, rng)
        if turn is not None:
            turns.append(turn)
    return turns


def _lift(thing: Thing) -> str | None:
    return thing.pattern if scene_tasks.easy_to_lift(thing) else None


def _stand_out(thing: Thing) -> str | None:
    return thing.color if scene_tasks.stands_out(thing) else None


def _no_roll(thing: Thing) -> str | None:
    return None if thing.shape == "circle" else thing.shape


_NAMING = {
    "compass": (lambda t: t.place, ("place",)),
    "level": (lambda t: t.place, ("place",)),
    "doing": (lambda t: t.shape, ("shape",)),
    "heading": (lambda t: t.direction or None, ()),
    "material": (lambda t: t.pattern, ("pattern",)),
    "thing": (lambda t: t.shape, ("shape",)),
    "tone": (lambda t: t.color, ("color",)),
    "outline": (lambda t: t.shape, ("shape",)),
    "look": (lambda t: t.pattern, ("pattern",)),
    "no_roll": (_no_roll, ("shape",)),
    "lift": (_lift, ("pattern", "size")),
    "stand_out": (_stand_out, ("color", "pattern", "size")),
}
"""Families of questions that the base mostly answers by naming what it sees: rule and `hide`."""


def _naming(family: Family) -> Family:
    rule = _NAMING.get(family.kind)
    return family if rule is None else replace(family, make=about(rule[0], hide=rule[1]))


def _in_words(answer: str) -> str:
    return NUMBERS[DIGITS.index(answer)] if answer in DIGITS else answer


def task_turns(
    scenes: Sequence[Scene], *, per_task: int, naming_per_task: int, rng: random.Random
) -> list[tuple[int, Turn]]:
    """Questions in the words of the ten tasks, as (position of the scene, turn).

    The base knows two ways to answer: as the task wants it ("northwest", "shining", "2"), and,
    more often, by naming what it sees ("top left", "star", "two"). Which one is wanted is what
    continual tuning has to teach, and what later tasks can make it forget.

    Args:
        scenes: What to ask about.
        per_task: Questions of each task, answered as the task wants it.
        naming_per_task: More questions of each task whose answers can be named.
        rng: Decides everything that is left open.
    """
    turns: list[tuple[int, Turn]] = []
    for task, families in scene_tasks.TASKS.items():
        wanted = choose(scenes, families, count=per_task, rng=rng, tries=1)
        turns += [(place, (asked.question, asked.answer)) for place, asked in wanted]
        if task == "count" or any(family.kind in _NAMING for family in families):
            named = tuple(_naming(family) for family in families)
            chosen = choose(scenes, named, count=naming_per_task, rng=rng, tries=1)
            turns += [(place, (asked.question, _in_words(asked.answer))) for place, asked in chosen]
    return turns


def tokenizer_texts(scenes: Sequence[Scene], *, seed: int) -> list[str]:
    """Texts from which the tokenizer learns its words: general turns, task wordings, words."""
    rng = random.Random(f"{seed}/tokenizer")
    texts = [f"USER: {q} ASSISTANT: {a}" for s in scenes for q, a in general_turns(s, rng, count=4)]
    for families in scene_tasks.TASKS.values():
        asked = choose(scenes, families, count=400, rng=rng, tries=1)
        texts += [f"{a.question} {a.answer}" for _, a in asked]
    texts += [f" {word}" for word in " ".join(WORDS).split()] * 20
    return texts
