"""Scenes of the embedded model: deterministic, as documented, and true to their pixels."""

import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftvlm.scenes import sprites, words
from swiftvlm.scenes import world as scenes
from swiftvlm.scenes.drawing import draw, photo
from swiftvlm.scenes.words import COLORS, KINDS, POOLS, TEST, TRAIN
from swiftvlm.scenes.world import SIDE, Box, gap, scene

MANY = [scene(TEST, seed) for seed in range(150)]


@pytest.mark.parametrize("pool", [TRAIN, TEST], ids=["train", "test"])
def test_a_seed_is_a_scene(pool):
    """The same seed gives the same record and the same pixels, another seed others."""
    assert scene(pool, 7) == scene(pool, 7)
    assert np.array_equal(draw(scene(pool, 7)), draw(scene(pool, 7)))
    assert scene(pool, 7) != scene(pool, 8)


def test_pools_share_nothing_they_must_not():
    """Photographs and seeds differ; fonts and combinations of the test pool hold some that training never shows."""
    assert not set(TRAIN.photos) & set(TEST.photos)
    assert set(TEST.fonts) - set(TRAIN.fonts)
    assert len(set(TEST.pairs) - set(TRAIN.pairs)) >= 0.15 * len(TEST.pairs)
    hidden = {pair for pair in TEST.pairs if words.reserved(*pair)}
    for one in (scene(TRAIN, seed) for seed in range(150)):
        assert not {(thing.kind, thing.color) for thing in one.things} & hidden
        assert {sign.font for sign in one.signs} <= set(words.FONTS)
    shown = {(thing.kind, thing.color) for one in MANY for thing in one.things}
    assert shown & hidden
    # Each kind and each colour is seen in training, so what is new is their combination alone.
    assert {kind for kind, _ in TRAIN.pairs} == set(KINDS)
    assert {color for _, color in TRAIN.pairs} == set(COLORS)
    assert POOLS["test"].offset > 2**39


def test_distributions_are_as_documented():
    """Counts, sizes, glyphs and overlaps of the documented ranges."""
    sides = [thing.side for one in MANY for thing in one.things]
    assert statistics.median(sides) <= 3 * scenes.PATCH
    assert 26 <= min(sides) <= max(sides) <= 60
    for one in MANY:
        assert 3 <= len(one.things) + len(one.signs) <= 12
        assert len(one.signs) <= 3
        for sign in one.signs:
            capitals = sprites.word_mask(sign.text, sign.font, sign.font_size)
            assert capitals.height <= 1.5 * scenes.PATCH
            assert len(sign.text) in words.LENGTHS
            distances = [gap(sign.box, thing.box) for thing in one.things]
            assert distances.index(min(distances)) == sign.near
        for i, thing in enumerate(one.things):
            for other in one.things[:i]:
                assert thing.box.overlap(other.box) <= 0.12 * min(thing.box.area, other.box.area) + 1e-6


def test_boxes_hold_their_pixels():
    """Drawn twice, with and without one thing, pictures differ inside its box (with its rim) only, on all sides."""
    for one in MANY[:12]:
        for i, thing in enumerate(one.things):
            without = replace(one, things=(*one.things[:i], *one.things[i + 1 :]))
            rows, columns = np.nonzero((np.asarray(draw(one), int) - np.asarray(draw(without), int)).any(-1))
            hidden = any(thing.box.grown(2).overlap(other.box) > 0 for other in (*without.things, *one.signs))
            found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            slack = 20 if hidden else 3
            assert all(abs(a - b) <= slack for a, b in zip(found, thing.box, strict=True)), (one.seed, thing)
            assert columns.min() >= thing.box.left - 3
            assert columns.max() <= thing.box.right + 3


def test_colours_are_those_named():
    """The commonest colour inside an unhidden disc or square is its tint, which is nearest to its name's colour."""
    for one in MANY:
        picture = np.asarray(draw(one), dtype=int) if any(t.kind in ("disc", "square") for t in one.things) else None
        for thing in one.things:
            others = [other.box for other in (*one.things, *one.signs) if other is not thing]
            if thing.kind in ("disc", "square") and not any(thing.box.overlap(box) for box in others):
                x, y = (round(value) for value in thing.box.center)
                assert tuple(picture[y, x]) == thing.tint
                near = min(COLORS, key=lambda name: math.dist(COLORS[name], thing.tint))
                assert near == thing.color


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**9), st.sampled_from([TRAIN, TEST]))
def test_everything_lies_in_the_picture(seed, pool):
    """No box leaves the picture."""
    one = scene(pool, seed)
    for item in (*one.things, *one.signs):
        assert 0 <= item.box.left < item.box.right <= SIDE
        assert 0 <= item.box.top < item.box.bottom <= SIDE


def test_boxes_by_hand():
    """Areas, overlaps and gaps of boxes that can be counted."""
    box = Box(10, 20, 30, 60)
    assert (box.area, box.center) == (800, (20, 40))
    assert box.overlap(Box(20, 50, 100, 100)) == 100
    assert box.overlap(Box(30, 20, 40, 60)) == 0
    assert gap(box, Box(33, 64, 40, 70)) == 5
    assert box.grown(1) == Box(9, 19, 31, 61)


def test_photographs_need_their_packages(monkeypatch):
    """A missing package is named with the way to get it."""
    monkeypatch.setattr("swiftvlm.scenes.drawing.importlib.util.find_spec", lambda name: None)
    photo.cache_clear()
    with pytest.raises(Exception, match=r'photographs of skimage: pip install "swiftvlm\[scenes\]"'):
        photo("skimage/data/coffee.png")


def test_rotation_and_size_stay_in_range():
    """Every sprite is as large as it says at every turn."""
    for kind in KINDS:
        for angle in random.Random(0).sample(sprites.ANGLES, 3):
            width, height = sprites.extent(kind, angle)
            assert max(width, height) == 1
            assert min(width, height) > 0.2, kind
