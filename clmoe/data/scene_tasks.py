"""The ten tasks on scenes of shapes, each a few families of questions with computed answers.

Tasks share their first words ("what is the ...", "is the ...", "where is the ...", "how ...") and
often ask for a different consequence of the same property: an object's shape decides its name
(recognition), what it does (action), whether it could roll (commonsense), what type of thing it is
(type), its kind of outline (subcategory) and why it does not roll (causal).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from clmoe.data.scene_questions import Family, refer
from clmoe.data.scenes import COLORS, PATTERNS, SHAPES, Scene, Thing

Made = tuple[dict[str, str], str] | None
Rule = Callable[[Thing], str | None]

COMPASS = (
    "northwest", "north", "northeast",
    "west", "middle", "east",
    "southwest", "south", "southeast",
)  # fmt: skip
LEVEL = ("high", "medium", "low")
MOTION = {"up": "rising", "down": "falling", "left": "leaving", "right": "coming"}
HEADING = {"up": "skyward", "down": "earthward", "left": "leftward", "right": "rightward"}
DOING = {
    "circle": "rolling", "star": "shining", "heart": "beating", "moon": "glowing",
    "cross": "spinning", "diamond": "balancing", "square": "resting", "rectangle": "lying",
}  # fmt: skip
TONE = (
    dict.fromkeys(("red", "orange", "yellow", "pink"), "warm")
    | dict.fromkeys(("green", "blue", "teal", "purple"), "cool")
    | dict.fromkeys(("black", "gray", "brown"), "dull")
)
OUTLINE = (
    dict.fromkeys(("circle", "heart", "moon"), "curved")
    | dict.fromkeys(("star", "diamond", "triangle", "arrow"), "pointed")
    | dict.fromkeys(("square", "rectangle", "cross"), "boxy")
)
LOOK = {"solid": "plain", "hollow": "outlined", "striped": "lined", "dotted": "spotted"}
MATERIAL = {"solid": "metal", "hollow": "glass", "striped": "wood", "dotted": "cloth"}
THING = (
    dict.fromkeys(("star", "moon"), "sky")
    | dict.fromkeys(("heart", "diamond"), "card")
    | dict.fromkeys(("arrow", "cross"), "sign")
    | dict.fromkeys(("square", "rectangle"), "block")
    | dict.fromkeys(("circle", "triangle"), "toy")
)
NO_ROLL = {"pointed": "points", "boxy": "corners", "curved": "dents"}


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def about(rule: Rule, *, hide: tuple[str, ...]) -> Callable[[Scene, random.Random], Made]:
    """Ask for `rule` of one object; a rule that returns None has no answer for that object."""

    def make(scene: Scene, rng: random.Random) -> Made:
        thing = rng.choice(scene.things)
        answer = rule(thing)
        ref = refer(scene, thing, rng, hide=hide) if answer else None
        return ({"ref": ref, "shape": thing.shape}, answer) if answer and ref else None

    return make


def _beside(scene: Scene, rng: random.Random) -> Made:
    """The shape of the only other object."""
    if len(scene.things) != 2:
        return None
    first, second = rng.sample(scene.things, 2)
    ref = refer(scene, first, rng, hide=("place",))
    return ({"ref": ref}, second.shape) if ref else None


def _exists(scene: Scene, rng: random.Random) -> Made:
    """A pair of properties; half of the time one that an object has."""
    thing = rng.choice(scene.things)
    keys = rng.choice((("color", "shape"), ("pattern", "shape"), ("size", "color")))
    values = {k: getattr(thing, k) for k in keys}
    if rng.random() < 0.6:
        key = rng.choice([k for k in keys if k != "size"])
        pool = {"color": tuple(COLORS), "shape": SHAPES, "pattern": PATTERNS}[key]
        values[key] = rng.choice(pool)
    there = any(all(getattr(t, k) == v for k, v in values.items()) for t in scene.things)
    words = " ".join(values[k] for k in keys)
    return {"words": words if "shape" in keys else f"{words} object"}, _yes(there)


def _has(scene: Scene, rng: random.Random, *, negated: bool) -> Made:
    """Whether one object has (or has not) a named property."""
    thing = rng.choice(scene.things)
    key = rng.choice(("color", "pattern"))
    others = [getattr(t, key) for t in scene.things]
    pool = tuple(COLORS) if key == "color" else PATTERNS
    wrong = [v for v in (*others, *pool) if v != getattr(thing, key)]
    value = getattr(thing, key) if rng.random() < 0.5 else rng.choice(wrong)
    ref = refer(scene, thing, rng, hide=(key, "place"))
    if ref is None:
        return None
    return {"ref": ref, "value": value}, _yes((getattr(thing, key) == value) != negated)


def _relation(scene: Scene, rng: random.Random) -> Made:
    """Whether one object is above, below, left or right of another."""
    if len(scene.things) < 2:
        return None
    first, second = rng.sample(scene.things, 2)
    one = refer(scene, first, rng, hide=("place",))
    two = refer(scene, second, rng, hide=("place",))
    down, across = second.cell // 3 - first.cell // 3, second.cell % 3 - first.cell % 3
    held = {"above": down > 0, "below": down < 0, "left of": across > 0, "right of": across < 0}
    relation = rng.choice(tuple(held))
    if one is None or two is None:
        return None
    return {"ref": one, "other": two, "relation": relation}, _yes(held[relation])


def _count(key: str) -> Callable[[Scene, random.Random], Made]:
    def make(scene: Scene, rng: random.Random) -> Made:
        values = [getattr(t, key) for t in scene.things]
        pool = {"color": tuple(COLORS), "shape": SHAPES, "pattern": PATTERNS}[key]
        value = rng.choice(values) if rng.random() < 0.8 else rng.choice(pool)
        noun = f"{value}s" if key == "shape" else f"{value} objects"
        return {"noun": noun}, str(values.count(value))

    return make


def _count_all(scene: Scene, rng: random.Random) -> Made:
    return {}, str(len(scene.things))


def _most(scene: Scene, rng: random.Random) -> Made:
    """The color of more objects than any other color."""
    (color, first), *rest = Counter(t.color for t in scene.things).most_common(2)
    return ({}, color) if first > (rest[0][1] if rest else 1) else None


def _row_color(scene: Scene, rng: random.Random) -> Made:
    thing = rng.choice(scene.things)
    return {"place": thing.place}, thing.color


def easy_to_lift(thing: Thing) -> str | None:
    """The one reason among a small size and a hollow pattern."""
    small, empty = thing.size == "small", thing.pattern == "hollow"
    return None if small == empty else ("size" if small else "empty")


def stands_out(thing: Thing) -> str | None:
    """The one reason among a warm color, a large size and a striped or dotted pattern."""
    reasons = {
        "bright": TONE[thing.color] == "warm",
        "size": thing.size == "large",
        "pattern": thing.pattern in ("striped", "dotted"),
    }
    held = [name for name, holds in reasons.items() if holds]
    return held[0] if len(held) == 1 else None


def _does(thing: Thing) -> str:
    return MOTION[thing.direction] if thing.direction else DOING[thing.shape]


def _family(kind: str, make: Callable[[Scene, random.Random], Made], *wordings: str) -> Family:
    return Family(kind, wordings, make)


TASKS: dict[str, tuple[Family, ...]] = {
    "recognition": (
        _family(
            "name", about(lambda t: t.shape, hide=("shape",)),
            "what is the {ref}?", "what is the {ref} called?", "which shape is the {ref}?",
            "what do you see as the {ref}?",
        ),
        _family(
            "beside", _beside,
            "what is shown with the {ref}?", "what is next to the {ref}?",
            "which shape is with the {ref}?",
        ),
    ),
    "location": (
        _family(
            "compass", about(lambda t: COMPASS[t.cell], hide=("place",)),
            "where is the {ref}?", "where can you find the {ref}?",
            "what is the place of the {ref}?", "in which part is the {ref}?",
        ),
        _family(
            "level", about(lambda t: LEVEL[t.cell // 3], hide=("place",)),
            "how high is the {ref}?", "at what level is the {ref}?",
            "where is the level of the {ref}?",
        ),
    ),
    "judge": (
        _family(
            "exists", _exists,
            "is there a {words}?", "can you see a {words}?", "does the picture have a {words}?",
        ),
        _family(
            "has", lambda s, r: _has(s, r, negated=False),
            "is the {ref} {value}?", "does the {ref} look {value}?",
        ),
        _family(
            "has_not", lambda s, r: _has(s, r, negated=True),
            "is the {ref} not {value}?", "does the {ref} not look {value}?",
        ),
        _family(
            "relation", _relation,
            "is the {ref} {relation} the {other}?", "can you see the {ref} {relation} the {other}?",
        ),
    ),
    "commonsense": (
        _family(
            "roll", about(lambda t: _yes(t.shape == "circle"), hide=("shape",)),
            "could the {ref} roll?", "is the {ref} able to roll down a hill?",
        ),
        _family(
            "stack",
            about(lambda t: _yes(t.shape in ("square", "rectangle", "cross")), hide=("shape",)),
            "could a cup stand on the {ref}?", "is the {ref} safe to put a cup on?",
        ),
        _family(
            "prick", about(lambda t: _yes(OUTLINE[t.shape] == "pointed"), hide=("shape",)),
            "could the {ref} hurt your finger?", "is the {ref} likely to hurt a finger?",
        ),
        _family(
            "hot", about(lambda t: _yes(TONE[t.color] == "warm"), hide=("color",)),
            "would the {ref} feel hot?", "is the {ref} likely to feel hot?",
        ),
        _family(
            "float", about(lambda t: _yes(t.pattern == "hollow"), hide=("pattern",)),
            "would the {ref} float on water?", "is the {ref} able to float?",
        ),
    ),
    "count": (
        _family(
            "count_color", _count("color"),
            "how many {noun} are there?", "what is the number of {noun}?",
            "how many {noun} can you see?",
        ),
        _family(
            "count_shape", _count("shape"),
            "how many {noun} are there?", "what is the number of {noun}?",
            "how many {noun} can you see?",
        ),
        _family(
            "count_pattern", _count("pattern"),
            "how many {noun} are there?", "what is the number of {noun}?",
        ),
        _family(
            "count_all", _count_all,
            "how many objects are there?", "what is the number of objects?",
        ),
    ),
    "action": (
        _family(
            "doing", about(_does, hide=("shape",)),
            "what is the {ref} doing?", "what does the {ref} do?", "how does the {ref} act?",
        ),
        _family(
            "heading", about(lambda t: HEADING.get(t.direction), hide=()),
            "where is the {ref} going?", "which way is the {ref} going?",
            "where does the {ref} go?",
        ),
    ),
    "color": (
        _family(
            "color_of", about(lambda t: t.color, hide=("color",)),
            "what color is the {ref}?", "what is the color of the {ref}?",
            "which color does the {ref} have?",
        ),
        _family(
            "color_at", _row_color,
            "what color is at the {place}?", "which color can you see at the {place}?",
        ),
        _family(
            "color_most", _most,
            "what color do most objects have?", "which color is the most common?",
        ),
    ),
    "type": (
        _family(
            "material", about(lambda t: MATERIAL[t.pattern], hide=("pattern",)),
            "what type of material is the {ref}?", "which material type does the {ref} have?",
            "what is the material of the {ref}?",
        ),
        _family(
            "thing", about(lambda t: THING[t.shape], hide=("shape",)),
            "what type of thing is the {ref}?", "which type is the {ref}?",
            "what is the type of the {ref}?",
        ),
    ),
    "subcategory": (
        _family(
            "tone", about(lambda t: TONE[t.color], hide=("color",)),
            "what kind of color is the {ref}?", "which kind of color does the {ref} have?",
        ),
        _family(
            "outline", about(lambda t: OUTLINE[t.shape], hide=("shape",)),
            "what kind of shape is the {ref}?", "which kind of shape does the {ref} have?",
        ),
        _family(
            "look", about(lambda t: LOOK[t.pattern], hide=("pattern",)),
            "what kind of {shape} is the {ref}?", "which kind of look does the {ref} have?",
        ),
    ),
    "causal": (
        _family(
            "lift", about(easy_to_lift, hide=("pattern", "size")),
            "why is the {ref} easy to lift?", "what makes the {ref} easy to lift?",
        ),
        _family(
            "no_roll",
            about(
                lambda t: None if t.shape == "circle" else NO_ROLL[OUTLINE[t.shape]],
                hide=("shape",),
            ),
            "why is the {ref} not rolling?", "what makes the {ref} stay?",
            "why does the {ref} not roll?",
        ),
        _family(
            "stand_out", about(stands_out, hide=("color", "pattern", "size")),
            "why does the {ref} stand out?", "what makes the {ref} stand out?",
        ),
    ),
}  # fmt: skip
"""The tasks in their default order."""
