"""Scenes of simple objects: what is in one, how one is drawn, and which split it belongs to.

A scene is pure content (shape, colour, pattern, size, direction and place of each object). Its
canonical JSON has a sha256, and that digest alone decides the scene's split, for every seed, and
the small accidents of its picture (jitter, background, colour shift). Two pictures with the same
content therefore never sit on different sides of a split.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import random
from collections.abc import Iterator

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 48
CELL = 16
SHAPES = (
    "circle", "square", "triangle", "rectangle", "star",
    "cross", "diamond", "heart", "moon", "arrow",
)  # fmt: skip
DIRECTED = ("triangle", "arrow")
COLORS = {
    "red": (220, 30, 35),
    "green": (40, 165, 50),
    "blue": (35, 60, 225),
    "yellow": (240, 215, 20),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
    "brown": (125, 70, 25),
    "teal": (0, 150, 150),
    "orange": (250, 135, 10),
    "purple": (130, 35, 170),
    "pink": (250, 130, 190),
}
PATTERNS = ("solid", "hollow", "striped", "dotted")
SIZES = ("small", "large")
DIRECTIONS = ("up", "right", "down", "left")
PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
SPLITS = ("pretrain", "train", "val", "test")
_BOUNDS = (50, 85, 90, 100)  # percent: 50 pretrain, 35 train, 5 val, 10 test
_SCALE = 4  # masks are drawn this many times larger and averaged down
_GAP = 70  # coverage between stripes and inside dots: faint, so that the outline stays visible


@dataclasses.dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene.

    `cell` is its place on the 3x3 grid, row by row from the top left; a free object has
    `cell` -1 and a `box` (left, top, width, height) in pixels instead. `direction` is empty
    for shapes that do not point anywhere.
    """

    shape: str
    color: str
    pattern: str
    size: str
    direction: str = ""
    cell: int = -1
    box: tuple[int, int, int, int] | None = None

    @property
    def place(self) -> str:
        """The cell in words, such as "top left"."""
        return PLACES[self.cell]


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """The content of one picture: one to five objects, ordered by cell."""

    things: tuple[Thing, ...]

    def canonical(self) -> str:
        """The scene as JSON with a fixed order of keys and no spaces."""
        rows = [
            [t.shape, t.color, t.pattern, t.size, t.direction, t.cell, t.box] for t in self.things
        ]
        return json.dumps(rows, separators=(",", ":"))

    def sha(self) -> str:
        """The sha256 of the canonical JSON, as 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def split_of(sha: str) -> str:
    """The split a scene belongs to, from its sha256 alone: 50, 35, 5 and 10 percent."""
    percent = int(sha[:12], 16) % 100
    return SPLITS[next(i for i, bound in enumerate(_BOUNDS) if percent < bound)]


def sample_scene(rng: random.Random) -> Scene:
    """Draw a grid scene: one to five objects, half of the later ones echoing an earlier one."""
    count = rng.choices((1, 2, 3, 4, 5), (8, 24, 32, 24, 12))[0]
    things: list[Thing] = []
    for cell in sorted(rng.sample(range(9), count)):
        fresh = _sample_thing(rng, cell)
        if things and rng.random() < 0.6:
            model = rng.choice(things)
            same = rng.choice(("color", "color", "shape", "pattern"))
            shape = model.shape if same == "shape" else fresh.shape
            fresh = dataclasses.replace(
                fresh,
                shape=shape,
                color=model.color if same == "color" else fresh.color,
                pattern=model.pattern if same == "pattern" else fresh.pattern,
                direction=rng.choice(DIRECTIONS) if shape in DIRECTED else "",
            )
        things.append(fresh)
    return Scene(tuple(things))


def sample_free_scene(rng: random.Random) -> Scene:
    """Draw a scene of a single object of any extent at any place, off the grid."""
    thing = _sample_thing(rng, -1)
    width = rng.randint(9, 38)
    height = rng.randint(9, 38) if thing.shape == "rectangle" else width
    left, top = rng.randint(0, SIDE - width), rng.randint(0, SIDE - height)
    size = "large" if max(width, height) > 20 else "small"
    pattern = "solid" if rng.random() < 0.6 else thing.pattern
    box = (left, top, width, height)
    return Scene((dataclasses.replace(thing, size=size, pattern=pattern, box=box),))


def scene_stream(seed: int | str, split: str, *, free: bool = False) -> Iterator[Scene]:
    """Endless distinct scenes of one split, the same for the same seed, split and kind.

    Args:
        seed: Any number or text.
        split: One of `SPLITS`.
        free: Scenes of one object off the grid instead of grid scenes.
    """
    rng = random.Random(f"{seed}/{split}/{free}")
    sample = sample_free_scene if free else sample_scene
    seen: set[str] = set()
    while True:
        scene = sample(rng)
        sha = scene.sha()
        if sha not in seen and split_of(sha) == split:
            seen.add(sha)
            yield scene


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, 48x48 pixels; the same scene always gives the same picture."""
    rng = random.Random(scene.sha())
    light = rng.randint(222, 255)
    background = tuple(min(255, light + rng.randint(-6, 6)) for _ in range(3))
    image = Image.new("RGB", (SIDE, SIDE), background)
    for thing in scene.things:
        ink = tuple(max(0, min(255, c + rng.randint(-14, 14))) for c in COLORS[thing.color])
        if thing.box is not None:
            left, top, width, height = thing.box
        else:
            width, height = _extent(thing)
            slack_x, slack_y = CELL - width, CELL - height
            reach = 1 if thing.size == "large" else 2
            left = CELL * (thing.cell % 3) + _jitter(rng, slack_x, reach)
            top = CELL * (thing.cell // 3) + _jitter(rng, slack_y, reach)
        mask = _mask(thing.shape, thing.direction, thing.pattern, width, height)
        image.paste(ink, (left, top), mask)
    return image


def _sample_thing(rng: random.Random, cell: int) -> Thing:
    shape = rng.choices(SHAPES, [2 if s in DIRECTED else 1 for s in SHAPES])[0]
    return Thing(
        shape=shape,
        color=rng.choice(tuple(COLORS)),
        pattern=rng.choice(PATTERNS),
        size=rng.choice(SIZES),
        direction=rng.choice(DIRECTIONS) if shape in DIRECTED else "",
        cell=cell,
    )


def _extent(thing: Thing) -> tuple[int, int]:
    """Width and height in pixels of an object inside its cell."""
    side = 14 if thing.size == "large" else 10
    return side, (side + 1) // 2 if thing.shape == "rectangle" else side


def _jitter(rng: random.Random, slack: int, reach: int) -> int:
    return max(0, min(slack, slack // 2 + rng.randint(-reach, reach)))


@functools.lru_cache(maxsize=4096)
def _mask(shape: str, direction: str, pattern: str, width: int, height: int) -> Image.Image:
    """Coverage of an object, mode L, `width` x `height`, smoothed at its edges."""
    wide, high = width * _SCALE, height * _SCALE
    full = Image.new("L", (wide, high), 0)
    outline = [(x * (wide - 1), y * (high - 1)) for x, y in _outline(shape, direction)]
    ImageDraw.Draw(full).polygon(outline, fill=255)
    if pattern == "hollow":
        # A frame keeps the erosion from treating the picture's edge as part of the object.
        border = 5 if min(width, height) < 12 else 7
        framed = Image.new("L", (wide + 2 * border, high + 2 * border), 0)
        framed.paste(full, (border, border))
        inner = framed.filter(ImageFilter.MinFilter(2 * border + 1))
        inner = inner.crop((border, border, border + wide, border + high))
        full = ImageChops.subtract(full, inner)
    elif pattern != "solid":
        full = ImageChops.multiply(full, _texture(pattern, wide, high))
    return full.reduce(_SCALE)


def _texture(pattern: str, wide: int, high: int) -> Image.Image:
    """How much ink goes where: stripes of two pixels in four, or faint dots as far apart."""
    texture = Image.new("L", (wide, high), 255)
    pen = ImageDraw.Draw(texture)
    two, period = 2 * _SCALE, 4 * _SCALE
    for top in range(two, high, period):
        if pattern == "striped":
            pen.rectangle((0, top, wide, top + two - 1), fill=_GAP)
            continue
        for left in range(two, wide, period):
            pen.rectangle((left, top, left + two - 1, top + two - 1), fill=_GAP)
    return texture


@functools.cache
def _outline(shape: str, direction: str) -> tuple[tuple[float, float], ...]:
    """The shape's polygon in the unit square, y downwards, turned to its direction."""
    points = _upright(shape)
    for _ in range(DIRECTIONS.index(direction) if direction else 0):
        points = [(1 - y, x) for x, y in points]  # a quarter turn, clockwise
    return tuple(points)


def _upright(shape: str) -> list[tuple[float, float]]:
    turn = [2 * math.pi * i / 40 for i in range(40)]
    a, b = 0.32, 0.68  # the arms of the cross
    fixed: dict[str, list[tuple[float, float]]] = {
        "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "rectangle": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
        "triangle": [(0.5, 0), (1, 1), (0, 1)],
        "arrow": [(0.5, 0), (1, 0.5), (b, 0.5), (b, 1), (a, 1), (a, 0.5), (0, 0.5)],
        "cross": [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b),
                  (0, a), (a, a)],
    }  # fmt: skip
    if shape in fixed:
        return fixed[shape]
    if shape == "circle":
        return [(0.5 + 0.5 * math.cos(t), 0.5 + 0.5 * math.sin(t)) for t in turn]
    if shape == "star":
        radii = [0.52 if i % 2 == 0 else 0.22 for i in range(10)]
        angles = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
        return [
            (0.5 + r * math.cos(t), 0.53 + r * math.sin(t))
            for r, t in zip(radii, angles, strict=True)
        ]
    if shape == "heart":
        return [
            (
                0.5 + math.sin(t) ** 3 / 2,
                0.46 - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 30,
            )
            for t in turn
        ]
    # The moon: the left half of a disc, hollowed by an arc of the same ends.
    outer = [math.pi / 2 + math.pi * i / 20 for i in range(21)]
    rim = [(0.75 + 0.72 * math.cos(t), 0.5 + 0.5 * math.sin(t)) for t in outer]
    bite = [(0.75 + 0.28 * math.cos(t), 0.5 + 0.5 * math.sin(t)) for t in reversed(outer)]
    return rim + bite
