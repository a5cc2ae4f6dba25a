"""Scenes as pictures: textures or photographs, the things on them, the signs."""

import importlib.util
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from swiftvlm.errors import SwiftVLMError
from swiftvlm.scenes import sprites
from swiftvlm.scenes.words import POOLS
from swiftvlm.scenes.world import Scene, Sign, Thing


@lru_cache(maxsize=32)
def photo(path: str) -> Image.Image:
    """A photograph that scikit-image or scikit-learn ships, its shorter side 500 pixels.

    Raises:
        SwiftVLMError: the package that holds it is not installed.
    """
    package, _, inside = path.partition("/")
    # Found, not imported: only a file in the package's folder is wanted.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SwiftVLMError(f'scenes stand on photographs of {package}: pip install "swiftvlm[scenes]"')
    picture = Image.open(Path(spec.submodule_search_locations[0]) / inside).convert("RGB")
    scale = 500 / min(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)


def _texture(rng: random.Random, side: int) -> np.ndarray:
    """Two colours blended by a few waves and coarse noise: (side, side, 3) float, 0 to 255."""
    # By the full picture's side: the smaller pictures of training have waves of the same length.
    y, x = np.mgrid[0:side, 0:side] / 336
    blend = np.zeros((side, side))
    for _ in range(rng.randint(1, 4)):
        across, down, phase = rng.uniform(-30, 30), rng.uniform(-30, 30), rng.uniform(0, 6.3)
        blend += rng.uniform(0.2, 1) * np.sin(across * x + down * y + phase)
    cells = rng.choice((6, 12, 24, 48))
    noise = np.array([[rng.randrange(256) for _ in range(cells)] for _ in range(cells)], dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    blend += rng.uniform(0, 2) * (smooth / 128 - 1)
    share = (1 / (1 + np.exp(-2 * blend)))[..., None]
    ends = [np.array([rng.randrange(256) for _ in range(3)], dtype=np.float64) for _ in range(2)]
    middle = rng.uniform(0.3, 1)  # how far the two colours are apart
    return ends[0] + share * middle * (ends[1] - ends[0])


def _crop(rng: random.Random, path: str, side: int) -> np.ndarray:
    """A window of a photograph at some scale, perhaps mirrored: (side, side, 3) float."""
    picture = photo(path)
    # A smaller picture shows less of the photograph, at the same scale.
    width = rng.uniform(0.5, 1) * min(picture.size) * side / 336
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - width)
    box = (left, top, left + width, top + width)
    window = picture.resize((side, side), Image.Resampling.BILINEAR, box)
    if rng.random() < 0.5:
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(window, dtype=np.float64)


def _ground(scene: Scene, rng: random.Random) -> Image.Image:
    """The background, with a little less contrast than the things on it."""
    if scene.background.startswith("texture:"):
        pixels = _texture(rng, scene.side)
    else:
        pixels = _crop(rng, scene.background, scene.side)
    contrast, shift = rng.uniform(0.5, 0.9), rng.uniform(-30, 30)
    return Image.fromarray(np.clip((pixels - 128) * contrast + 128 + shift, 0, 255).astype(np.uint8))


def _paste_thing(canvas: Image.Image, thing: Thing) -> None:
    """A thing with a thin rim that sets it off from any background."""
    left, top = round(thing.box.left), round(thing.box.top)
    size = (max(2, round(thing.box.right) - left), max(2, round(thing.box.bottom) - top))
    mask = sprites.sprite(thing.kind, thing.angle).resize(size, Image.Resampling.LANCZOS)
    light = sum(thing.tint) > 330
    rim = (25, 25, 25) if light else (235, 235, 235)
    # The mask, fainter and one pixel off in four directions: the rim reaches a pixel beyond the thing's box.
    for step in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        canvas.paste(rim, (left + step[0], top + step[1]), mask.point(lambda value: value * 6 // 10))
    canvas.paste(thing.tint, (left, top), mask)


def _paste_sign(canvas: Image.Image, sign: Sign) -> None:
    """A plate with a word in its middle."""
    plate, ink = ((40, 44, 52), (250, 250, 240)) if sign.dark else ((247, 244, 232), (20, 20, 24))
    # Whole numbers already (`world._sign` rounds), so letters stand exactly where their labels say.
    left, top, right, bottom = (int(value) for value in sign.box)
    canvas.paste(ink, (left, top, right, bottom))
    canvas.paste(plate, (left + 1, top + 1, right - 1, bottom - 1))
    mask = sprites.word_mask(sign.text, sign.font, sign.font_size)
    canvas.paste(ink, (left + 4, top + 4), mask)


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, the same every time."""
    # A stream of its own, at an offset that no scene's seed reaches: a change to drawing moves nothing in a scene.
    rng = random.Random(POOLS[scene.pool].offset + scene.seed + 7 * 10**11)
    canvas = _ground(scene, rng)
    for thing in scene.things:
        _paste_thing(canvas, thing)
    for sign in scene.signs:
        _paste_sign(canvas, sign)
    return canvas
