"""What each patch of a scene shows, as the vector that the projector learns to give it.

The language model first learns to answer from these vectors, long before the vision tower sees; the tower and the
projector learn to produce them, in parallel. A thing's code stands under its middle only, on one patch or, if the
middle lies within 2 pixels of a border, on its neighbours too: 1.6 patches on average. So what the language model must
know of a thing rests on few visual tokens, and losing them hurts. The labels that help the tower along stand on the
patches whose own middle lies in the inner 70% of the box.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swiftvlm.scenes import COLORS, KINDS, LENGTHS, LETTERS, PATCH, SIDE, Box, Scene, Sign, Thing, letter_spans

CORE = 0.7
REACH = 2.0  # pixels around a thing's middle; patches that they touch carry its code
FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0)  # full waves over the picture's side
SLOTS = max(LENGTHS)
# 0 is a patch that shows nothing; the kinds count from 1 in their order, and a sign is the last.
SIGN = len(KINDS) + 1
# In the order of a code's entries, by which `start` and `dense` find them; `shown` has two, yes and no.
WIDTHS = {"shown": 2, "kind": len(KINDS) + 1, "color": len(COLORS), "box": 8 * len(FREQUENCIES), "word": SLOTS * 20}
WIDTH = sum(WIDTHS.values())
# 20 sines and 20 cosines are 1.8 long together at this scale, where a kind or a colour is 1.
BOX_SCALE = 0.4


@dataclass
class Patches:
    """Labels of every patch, row by row; 0 means none.

    Shapes: `kind`, `color`, `letter` and `middle` (whether a code stands here) (rows, patches); `word` (rows, patches,
    slots); `box` (rows, patches, 4) in shares of the full picture's side; `spot` (rows, patches, 2) middles of the
    patches in the same measure.
    """

    kind: Tensor
    color: Tensor
    letter: Tensor
    word: Tensor
    box: Tensor
    spot: Tensor
    middle: Tensor


def _middle(box: Box, cells: int) -> tuple[slice, slice]:
    """Rows and columns of the patches under the middle of a box."""
    x, y = box.center
    # y first: grids are rows by columns, boxes x before y.
    spans = [(int((at - REACH) // PATCH), int((at + REACH) // PATCH)) for at in (y, x)]
    rows, columns = (slice(max(0, first), min(cells, last + 1)) for first, last in spans)
    return rows, columns


def _core(box: Box, cells: int) -> tuple[slice, slice]:
    """Rows and columns of the patches whose middle lies in the inner part of a box."""
    spans = []
    for low, high in ((box.top, box.bottom), (box.left, box.right)):
        middle, half = (low + high) / 2, CORE * (high - low) / 2
        first = math.ceil((middle - half) / PATCH - 0.5)
        last = math.floor((middle + half) / PATCH - 0.5)
        # A box too thin to hold a patch's middle has the patch under its own middle.
        if last < first:
            first = last = int(middle / PATCH)
        spans.append(slice(max(0, first), min(cells, last + 1)))
    return spans[0], spans[1]


def patches(scenes: list[Scene], corners: list[tuple[int, int]] | None = None) -> Patches:
    """Labels of scenes of one size; `corners`: row and column in the full grid where each one's picture begins."""
    cells = scenes[0].side // PATCH
    shape = (len(scenes), cells, cells)
    corners = corners or [(0, 0)] * len(scenes)
    y, x = np.mgrid[0:cells, 0:cells].astype(np.float32) + 0.5
    # Corners are (row, column), spots and boxes x before y; both in shares of the full picture's side.
    spots = np.stack([np.stack([x + across, y + down], -1) for down, across in corners]) * PATCH / SIDE
    grid: dict[str, Any] = {
        **{name: np.zeros(shape, dtype=np.int64) for name in ("kind", "color", "letter")},
        "word": np.zeros((*shape, SLOTS), dtype=np.int64),
        "box": np.zeros((*shape, 4), dtype=np.float32),
        "spot": spots.astype(np.float32),
        "middle": np.zeros(shape, dtype=bool),
    }
    for i, (one, (down, across)) in enumerate(zip(scenes, corners, strict=True)):
        part = {name: values[i] for name, values in grid.items()}
        shift = np.array([across, down, across, down], dtype=np.float32) * PATCH
        _stamp_all(part, [*one.things, *one.signs], cells, shift)
        for sign in one.signs:
            _stamp_letters(part, sign)
    return Patches(**{name: torch.from_numpy(values).flatten(1, 2) for name, values in grid.items()})


def _stamp_all(part: dict[str, Any], both: list[Thing | Sign], cells: int, shift: Any) -> None:
    """All things and signs of a picture of `cells` x `cells` patches."""
    # Middles come last: where the core of another thing covers one, the thing under its own middle is told.
    for place in (_core, _middle):
        for thing in both:
            _stamp(part, place(thing.box, cells), thing, shift)
            part["middle"][place(thing.box, cells)] = place is _middle


def _stamp_letters(part: dict[str, Any], sign: Sign) -> None:
    """Each letter of a sign into the patch under its middle."""
    row = int((sign.box.top + sign.box.bottom) / 2 / PATCH)
    for char, (a, b) in zip(sign.text, letter_spans(sign.text, sign.font, sign.font_size), strict=True):
        # 4: the plate's rim, as `drawing` pastes the word. Of two narrow letters on one patch the later one is told.
        part["letter"][row, int((sign.box.left + 4 + (a + b) / 2) / PATCH)] = LETTERS.index(char) + 1


def _stamp(part: dict[str, Any], where: tuple[slice, slice], thing: Thing | Sign, shift: Any) -> None:
    """Write what a thing or sign is into some patches of a picture, over whatever stood there."""
    part["box"][where] = (np.array(thing.box) + shift) / SIDE
    part["word"][where] = 0
    if isinstance(thing, Sign):
        part["kind"][where], part["color"][where] = SIGN, 0
        # Two slices make a view, which is written into; a mask here would write into a copy.
        part["word"][where][..., : len(thing.text)] = [LETTERS.index(char) + 1 for char in thing.text]
    else:
        part["kind"][where] = KINDS.index(thing.kind) + 1
        part["color"][where] = list(COLORS).index(thing.color) + 1


def waves(box: Tensor) -> Tensor:
    """Boxes of shape (..., 4) as sines and cosines of every coordinate, (..., 8 * frequencies)."""
    # (..., 4, frequencies): edge by edge, the sines before the cosines; `start` halves them into two corners.
    angle = 2 * math.pi * box[..., None] * torch.tensor(FREQUENCIES, device=box.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def encode(labels: Patches, width: int) -> Tensor:
    """The vectors of patches: (rows, patches, width), nothing beyond the first `WIDTH` entries.

    Raises:
        ValueError: the width holds no code.
    """
    if width < WIDTH:
        raise ValueError(f"a width of {width} does not hold the code of a patch; at least {WIDTH}")
    shown = labels.middle.float()[..., None]
    # Label 0, nothing, has no entry of its own.
    kind = torch.nn.functional.one_hot(labels.kind, len(KINDS) + 2)[..., 1:]
    color = torch.nn.functional.one_hot(labels.color, len(COLORS) + 1)[..., 1:]
    word = torch.nn.functional.one_hot(labels.word, len(LETTERS) + 1)[..., 1:].flatten(-2)
    # Times `shown`: the cosines of an empty box are 1, not 0.
    told = shown * torch.cat([kind, color, BOX_SCALE * waves(labels.box), word], dim=-1)
    code = torch.cat([shown, 1 - shown, told], dim=-1)
    return torch.nn.functional.pad(code, (0, width - WIDTH))
