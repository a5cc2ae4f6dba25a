"""What each patch of a scene shows, as the vector that the projector learns to give it.

The language model first learns to answer from these vectors, long before the vision tower sees; the tower and the
projector learn to produce them, in parallel. A thing's code stands on its core only: the patches whose middle lies in
the inner 70% of its box, at least the one under its middle. So small things rest on few visual tokens, and losing them
hurts.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swiftvlm.mini.scenes import PATCH, SIDE, Box, Scene
from swiftvlm.mini.sprites import letter_spans
from swiftvlm.mini.words import COLORS, KINDS, LENGTHS, LETTERS

CORE = 0.7
FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0)  # full waves over the picture's side
SLOTS = max(LENGTHS)
NO_KIND, SIGN = 0, len(KINDS) + 1
WIDTHS = {"shown": 2, "kind": len(KINDS) + 1, "color": len(COLORS), "box": 8 * len(FREQUENCIES), "word": SLOTS * 20}
WIDTH = sum(WIDTHS.values())
BOX_SCALE = 0.4


@dataclass
class Patches:
    """Labels of every patch, row by row; 0 means none.

    Shapes: `kind`, `color`, `letter` (rows, patches); `word` (rows, patches, slots); `box` (rows, patches, 4) in shares
    of the full picture's side; `spot` (rows, patches, 2) middles of the patches in the same measure.
    """

    kind: Tensor
    color: Tensor
    letter: Tensor
    word: Tensor
    box: Tensor
    spot: Tensor


def _core(box: Box, cells: int) -> tuple[slice, slice]:
    """Rows and columns of the patches whose middle lies in the inner part of a box."""
    spans = []
    for low, high in ((box.top, box.bottom), (box.left, box.right)):
        middle, half = (low + high) / 2, CORE * (high - low) / 2
        first = math.ceil((middle - half) / PATCH - 0.5)
        last = math.floor((middle + half) / PATCH - 0.5)
        if last < first:
            first = last = int(middle / PATCH)
        spans.append(slice(max(0, first), min(cells, last + 1)))
    return spans[0], spans[1]


def patches(scenes: list[Scene], corners: list[tuple[int, int]] | None = None) -> Patches:
    """Labels of scenes of one size; `corners`: row and column in the full grid where each one's picture begins."""
    cells = scenes[0].side // PATCH
    shape = (len(scenes), cells, cells)
    kind, color, letter = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    word = np.zeros((*shape, SLOTS), dtype=np.int64)
    box = np.zeros((*shape, 4), dtype=np.float32)
    corners = corners or [(0, 0)] * len(scenes)
    colors = list(COLORS)
    for i, (one, (down, across)) in enumerate(zip(scenes, corners, strict=True)):
        shift = np.array([across, down, across, down], dtype=np.float32) * PATCH
        for thing in one.things:
            rows, columns = _core(thing.box, cells)
            kind[i, rows, columns] = KINDS.index(thing.kind) + 1
            color[i, rows, columns] = colors.index(thing.color) + 1
            box[i, rows, columns] = (np.array(thing.box) + shift) / SIDE
        for sign in one.signs:
            rows, columns = _core(sign.box, cells)
            kind[i, rows, columns] = SIGN
            color[i, rows, columns] = 0
            box[i, rows, columns] = (np.array(sign.box) + shift) / SIDE
            for slot, char in enumerate(sign.text):
                word[i, rows, columns, slot] = LETTERS.index(char) + 1
            middle = int((sign.box.top + sign.box.bottom) / 2 / PATCH)
            for char, (a, b) in zip(sign.text, letter_spans(sign.text, sign.font, sign.font_size), strict=True):
                letter[i, middle, int((sign.box.left + 4 + (a + b) / 2) / PATCH)] = LETTERS.index(char) + 1
    y, x = np.mgrid[0:cells, 0:cells].astype(np.float32) + 0.5
    spot = np.stack([np.stack([x + across, y + down], -1) for down, across in corners]) * PATCH / SIDE
    flat = [torch.from_numpy(part).flatten(1, 2) for part in (kind, color, letter, word, box, spot.astype(np.float32))]
    return Patches(*flat)


def waves(box: Tensor) -> Tensor:
    """Boxes (..., 4) as sines and cosines of every coordinate (..., 8 * frequencies)."""
    angle = 2 * math.pi * box[..., None] * torch.tensor(FREQUENCIES)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def encode(labels: Patches, width: int) -> Tensor:
    """The vectors of patches: (rows, patches, width), nothing beyond the first `WIDTH` entries.

    Raises:
        ValueError: the width holds no code.
    """
    if width < WIDTH:
        raise ValueError(f"a width of {width} does not hold the code of a patch; at least {WIDTH}")
    shown = (labels.kind > 0).float()[..., None]
    kind = torch.nn.functional.one_hot(labels.kind, len(KINDS) + 2)[..., 1:]
    color = torch.nn.functional.one_hot(labels.color, len(COLORS) + 1)[..., 1:]
    word = torch.nn.functional.one_hot(labels.word, len(LETTERS) + 1)[..., 1:].flatten(-2)
    parts = [shown, 1 - shown, kind.float(), color.float(), BOX_SCALE * shown * waves(labels.box), word.float()]
    code = torch.cat(parts, dim=-1)
    return torch.nn.functional.pad(code, (0, width - WIDTH))
