"""Scenes: content, splits and pictures."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmoe.data import scenes as s
from clmoe.data.scenes import Scene, Thing


def picture(*things: Thing) -> np.ndarray:
    return np.asarray(s.draw(Scene(things))).astype(int)


def star(**changes: object) -> Thing:
    kept = {"shape": "star", "color": "red", "pattern": "solid", "size": "large", "cell": 4}
    return Thing(**(kept | changes))  # type: ignore[arg-type]


def test_canonical_json_has_content_only_and_decides_the_sha() -> None:
    scene = Scene((star(),))
    assert json.loads(scene.canonical()) == [["star", "red", "solid", "large", "", 4, None]]
    assert scene.sha() == Scene((star(),)).sha()
    assert scene.sha() != Scene((star(color="blue"),)).sha()


def test_split_follows_from_the_sha_alone() -> None:
    assert s.split_of("000000000031" + "0" * 52) == "pretrain"  # 49
    assert s.split_of("000000000032" + "f" * 52) == "train"  # 50
    assert s.split_of("000000000055" + "0" * 52) == "val"  # 85
    assert s.split_of("00000000005a" + "0" * 52) == "test"  # 90


@given(st.integers(0, 10**6))
def test_every_seed_gives_scenes_of_the_split_asked_for(seed: int) -> None:
    for split in s.SPLITS:
        for scene in itertools.islice(s.scene_stream(seed, split), 3):
            assert s.split_of(scene.sha()) == split


def test_splits_have_the_stated_shares() -> None:
    rng = random.Random(1)
    shares = Counter(s.split_of(s.sample_scene(rng).sha()) for _ in range(8000))
    expected = {"pretrain": 0.5, "train": 0.35, "val": 0.05, "test": 0.1}
    for split, share in expected.items():
        assert shares[split] / 8000 == pytest.approx(share, abs=0.02)


def test_streams_repeat_and_hold_no_scene_twice() -> None:
    first = [x.sha() for x in itertools.islice(s.scene_stream(3, "train"), 500)]
    assert first == [x.sha() for x in itertools.islice(s.scene_stream(3, "train"), 500)]
    assert first != [x.sha() for x in itertools.islice(s.scene_stream(4, "train"), 500)]
    assert len(set(first)) == 500


def test_sampled_scenes_use_every_value_and_distinct_cells() -> None:
    seen: dict[str, set[object]] = {}
    for scene in itertools.islice(s.scene_stream(0, "train"), 1000):
        cells = [t.cell for t in scene.things]
        assert cells == sorted(set(cells))
        for thing in scene.things:
            assert bool(thing.direction) == (thing.shape in s.DIRECTED)
            for key in ("shape", "color", "pattern", "size", "cell"):
                seen.setdefault(key, set()).add(getattr(thing, key))
    assert {k: len(v) for k, v in seen.items()} == {
        "shape": 10, "color": 11, "pattern": 4, "size": 2, "cell": 9,
    }  # fmt: skip


def test_free_scenes_stay_inside_the_picture() -> None:
    for scene in itertools.islice(s.scene_stream(0, "test", free=True), 300):
        (thing,) = scene.things
        assert thing.cell == -1
        assert thing.box is not None
        left, top, width, height = thing.box
        assert min(left, top) >= 0
        assert max(left + width, top + height) <= s.SIDE


def test_a_picture_repeats_and_shows_its_object_in_its_cell_only() -> None:
    scene = Scene((star(cell=5),))
    image = s.draw(scene)
    assert (image.mode, image.size) == ("RGB", (48, 48))
    assert image.tobytes() == s.draw(scene).tobytes()
    pixels = np.asarray(image).astype(int)
    inked = (np.abs(pixels - pixels[0, 0]).sum(-1) > 60).nonzero()
    assert set(inked[0] // 16) == {1}
    assert set(inked[1] // 16) == {2}


def test_ink_has_the_named_color() -> None:
    for name, color in s.COLORS.items():
        pixels = picture(star(shape="square", color=name))
        assert np.abs(pixels[24, 24] - np.array(color)).max() <= 14


def test_shapes_patterns_sizes_and_directions_give_different_masks() -> None:
    masks = [
        np.asarray(s._mask(shape, direction, pattern, side, side)).astype(int)
        for side in (14, 10)
        for shape in s.SHAPES
        if shape != "rectangle"  # a square mask of it is a square; its extent makes the difference
        for pattern in s.PATTERNS
        for direction in (s.DIRECTIONS if shape in s.DIRECTED else ("",))
    ]
    for one, two in itertools.combinations(masks, 2):
        assert one.shape != two.shape or np.abs(one - two).mean() > 4


def test_an_arrow_up_is_an_arrow_down_turned_over() -> None:
    up = np.asarray(s._mask("arrow", "up", "solid", 14, 14)).astype(int)
    down = np.asarray(s._mask("arrow", "down", "solid", 14, 14)).astype(int)
    assert np.abs(up[::-1] - down).mean() < 12
    assert (up[:4] > 128).sum() < (up[4:8] > 128).sum()
