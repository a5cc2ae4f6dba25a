"""Scenes that the embedded model is trained and tested on: small things and signs, with their ground truth.

Distributions (fixed; a change makes every published result incomparable):

- 336 x 336 pixels, 24 x 24 patches of 14. 4 to 12 objects, of which 1 to 3 are signs.
- Longer side of a thing: log-uniform in 26 to 60 pixels (median 39.5, 2.8 patches); `small` below 33, `large` over 48.
- Kinds: 17 named symbols, 7 drawn shapes; 8 colours, jittered; turned by -30 to 30 degrees in steps of 5.
- Signs: 2 or 3 of 20 letters, capitals 14 to 20 pixels high (1.4 patches), dark on light or light on dark. Each stands
  beside a thing, which no other sign does.
- Things overlap by at most 12% of the smaller one's box; signs overlap nothing.
- Half of the scenes stand on a photograph, half on a texture.
- A third of the things repeat the kind of another thing, so that questions need the other words.
"""

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from swiftvlm.amounts import Number
from swiftvlm.scenes import sprites
from swiftvlm.scenes.words import COLORS, LENGTHS, LETTERS, Pool

SIDE = 336
PATCH = 14
GRID = SIDE // PATCH
SMALL, LARGE = 33, 48
# At 20 to 50 pixels, and letters of 12 to 17, the tower learnt too slowly (LOG.md).
SIDES = (26.0, 60.0)
FONT_SIZES = (20, 27)  # capitals are about 0.73 of these


class Box(NamedTuple):
    """Left, top, right, bottom in pixels."""

    left: Number
    top: Number
    right: Number
    bottom: Number

    @property
    def center(self) -> tuple[Number, Number]:
        """Middle of the box in pixels (x, y)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def area(self) -> Number:
        """Square pixels; 0 for an empty box."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def overlap(self, other: "Box") -> Number:
        """Area that two boxes share."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        return Box(left, top, min(self.right, other.right), min(self.bottom, other.bottom)).area

    def grown(self, by: Number) -> "Box":
        """The box with a rim of `by` pixels."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)


@dataclass(frozen=True)
class Thing:
    """A symbol or a shape: what it is, its colour, its longer side in pixels, its turn in degrees, its box."""

    kind: str
    color: str
    side: Number
    angle: int
    box: Box
    tint: tuple[int, int, int]

    @property
    def size(self) -> str | None:
        """`small`, `large`, or none of both."""
        return "small" if self.side < SMALL else "large" if self.side > LARGE else None


@dataclass(frozen=True)
class Sign:
    """A plate with a word: the font and its size in pixels, box of the plate, the thing beside it."""

    text: str
    font: str
    font_size: int
    dark: bool
    box: Box
    near: int


@dataclass(frozen=True)
class Scene:
    """One picture's ground truth. Things are drawn in order, later ones over earlier ones, signs last."""

    pool: str
    seed: int
    side: int
    background: str
    things: tuple[Thing, ...]
    signs: tuple[Sign, ...]


def _free(box: Box, side: int, things: list[Thing], signs: list[Sign], share: Number) -> bool:
    """Whether a box lies in the picture, covers no sign and overlaps things by at most `share`."""
    if min(box.left, box.top) < 1 or max(box.right, box.bottom) > side - 1:
        return False
    if any(box.grown(2).overlap(sign.box) > 0 for sign in signs):
        return False
    # Of the smaller box, or a large thing could hide a small one.
    return all(box.overlap(other.box) <= share * min(box.area, other.box.area) for other in things)


def _thing(rng: random.Random, pool: Pool, side: int, things: list[Thing], signs: list[Sign]) -> Thing | None:
    """Another thing at a free place; a third of them repeat the kind of one that is there."""
    pairs = pool.pairs
    if things and rng.random() < 1 / 3:
        twin = rng.choice(things)
        pairs = tuple(pair for pair in pairs if pair[0] == twin.kind)
    kind, color = rng.choice(pairs)
    longer = SIDES[0] * math.exp(rng.random() * math.log(SIDES[1] / SIDES[0]))
    angle = rng.choice(sprites.ANGLES)
    # The longer side is that of the turned thing's box.
    width, height = (longer * part for part in sprites.extent(kind, angle))
    shades = [min(255, max(0, value + rng.randint(-14, 14))) for value in COLORS[color]]
    for _ in range(12):
        left, top = rng.uniform(1, side - 1 - width), rng.uniform(1, side - 1 - height)
        box = Box(left, top, left + width, top + height)
        if _free(box, side, things, signs, 0.12):
            return Thing(kind, color, longer, angle, box, (shades[0], shades[1], shades[2]))
    return None


def _sign(rng: random.Random, pool: Pool, side: int, things: list[Thing], signs: list[Sign]) -> Sign | None:
    """A sign beside a thing that has none yet, nearer to it than to any other thing."""
    # Never empty: `scene` places no more signs than there are things.
    near = rng.choice([i for i in range(len(things)) if all(sign.near != i for sign in signs)])
    text = "".join(rng.choice(LETTERS) for _ in range(rng.choice(LENGTHS)))
    face, size, dark = rng.choice(pool.fonts), rng.randint(*FONT_SIZES), rng.random() < 0.5
    mask = sprites.word_mask(text, face, size)
    # 4 pixels left of the letters and above them, on which `drawing` and `codes` count.
    width, height = mask.width + 9, mask.height + 8
    beside = things[near].box
    x, y = beside.center
    places = [
        (beside.right + 4, y - height / 2),
        (beside.left - 4 - width, y - height / 2),
        (x - width / 2, beside.bottom + 4),
        (x - width / 2, beside.top - 4 - height),
    ]
    rng.shuffle(places)
    for left, top in places:
        # Whole pixels, unlike a thing's: letters are pasted as they are, and labels know the patch of each.
        box = Box(round(left), round(top), round(left) + width, round(top) + height)
        # Clearly nearest to its own thing, so that `next to` leaves no doubt.
        alone = all(gap(box, thing.box) > gap(box, beside) + 10 for i, thing in enumerate(things) if i != near)
        if alone and _free(box, side, things, signs, 0.0):
            return Sign(text, face, size, dark, box, near)
    return None


def gap(one: Box, other: Box) -> Number:
    """Pixels between two boxes; 0 if they touch."""
    across = max(0.0, one.left - other.right, other.left - one.right)
    down = max(0.0, one.top - other.bottom, other.top - one.bottom)
    return math.hypot(across, down)


def scene(
    pool: Pool, seed: int, *, side: int = SIDE, objects: tuple[int, int] = (4, 12), plates: bool = False
) -> Scene:
    """Scene number `seed` of a pool. Other sides and counts and more signs (`plates`) serve training, never tests."""
    # One generator, read in a fixed order: one draw more or less changes every scene, and every question.
    rng = random.Random(pool.offset + seed)
    background = rng.choice(pool.photos) if rng.random() < 0.5 else f"texture:{rng.randrange(10**6)}"
    total = rng.randint(*objects)
    wanted = total // 2 if plates else min(rng.randint(1, 3), total // 3)
    things: list[Thing] = []
    signs: list[Sign] = []
    for _ in range(4 * total):
        found = _thing(rng, pool, side, things, signs)
        things += [found] if found else []
        if len(things) >= total - wanted:
            break
    for _ in range(4 * wanted):
        if len(signs) < min(wanted, len(things)):
            plate = _sign(rng, pool, side, things, signs)
            signs += [plate] if plate else []
    return Scene(pool.name, seed, side, background, tuple(things), tuple(signs))
