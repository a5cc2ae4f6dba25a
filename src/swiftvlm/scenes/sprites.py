"""Masks of the things in a scene: symbols, drawn shapes and words, each a greyscale image cut to its own box."""

import math
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from swiftvlm.amounts import Number
from swiftvlm.scenes.words import SYMBOLS

SIZE = 96  # pixels a side at which masks are made; the largest thing in a scene is smaller
ANGLES = tuple(range(-30, 31, 5))  # degrees, anticlockwise


@lru_cache(maxsize=64)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that matplotlib ships."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _cut(mask: Image.Image) -> Image.Image:
    """The mask without its empty rim; the faintest edge counts as empty."""
    return mask.crop(mask.point(lambda value: 255 * (value > 40)).getbbox())


def _polygon(corners: int, turn: Number) -> list[tuple[Number, Number]]:
    """Corners of a regular polygon that fills the mask."""
    half = SIZE / 2
    turns = [2 * math.pi * (i / corners) + turn for i in range(corners)]
    return [(half + 0.98 * half * math.cos(t), half + 0.98 * half * math.sin(t)) for t in turns]


def _shape(kind: str) -> Image.Image:
    """One of `SHAPES`, upright."""
    mask = Image.new("L", (SIZE, SIZE))
    pen, n = ImageDraw.Draw(mask), SIZE
    if kind == "disc":
        pen.ellipse((1, 1, n - 2, n - 2), fill=255)
    elif kind == "ring":
        pen.ellipse((1, 1, n - 2, n - 2), fill=255)
        pen.ellipse((0.27 * n, 0.27 * n, 0.73 * n, 0.73 * n), fill=0)
    elif kind == "square":
        pen.rectangle((4, 4, n - 5, n - 5), fill=255)
    elif kind == "triangle":
        pen.polygon(_polygon(3, -math.pi / 2), fill=255)
    elif kind == "hexagon":
        pen.polygon(_polygon(6, 0), fill=255)
    elif kind == "cross":
        pen.rectangle((0.34 * n, 2, 0.66 * n, n - 3), fill=255)
        pen.rectangle((2, 0.34 * n, n - 3, 0.66 * n), fill=255)
    else:  # an arrow that points to the right
        pen.polygon([(0.55 * n, 4), (n - 2, n / 2), (0.55 * n, n - 5)], fill=255)
        pen.rectangle((2, 0.37 * n, 0.6 * n, 0.63 * n), fill=255)
    return mask


@lru_cache(maxsize=512)
def sprite(kind: str, angle: int) -> Image.Image:
    """Mask of a thing turned by one of `ANGLES`, cut to its box; its longer side is about `SIZE` pixels."""
    if kind in SYMBOLS:
        # Twice `SIZE`, so that no corner is cut off in turning.
        upright = Image.new("L", (2 * SIZE, 2 * SIZE))
        face = font("DejaVuSans", SIZE)
        ImageDraw.Draw(upright).text((SIZE, SIZE), SYMBOLS[kind], font=face, fill=255, anchor="mm")
    else:
        upright = Image.new("L", (2 * SIZE, 2 * SIZE))
        upright.paste(_shape(kind), (SIZE // 2, SIZE // 2))
    # Kept by the cache: nobody may draw into it.
    return _cut(upright.rotate(angle, Image.Resampling.BICUBIC))


@lru_cache(maxsize=4096)
def extent(kind: str, angle: int) -> tuple[Number, Number]:
    """Width and height of a thing whose longer side is 1."""
    width, height = sprite(kind, angle).size
    return width / max(width, height), height / max(width, height)


def word_mask(text: str, face: str, size: int) -> Image.Image:
    """A word in a font of `size` pixels, cut to its box."""
    mask = Image.new("L", (size * (len(text) + 1), 2 * size))
    ImageDraw.Draw(mask).text((size // 2, size), text, font=font(face, size), fill=255, anchor="lm")
    return _cut(mask)


@lru_cache(maxsize=8192)
def letter_spans(text: str, face: str, size: int) -> tuple[tuple[Number, Number], ...]:
    """Left and right of each letter of a word, in pixels from the left of its mask."""
    # Advances, stretched to the ink: the mask has lost what is blank before the first letter and behind the last.
    ends = [font(face, size).getlength(text[: i + 1]) for i in range(len(text))]
    width = word_mask(text, face, size).width
    starts = [0.0, *ends[:-1]]
    scale = width / ends[-1]
    return tuple((a * scale, b * scale) for a, b in zip(starts, ends, strict=True))
