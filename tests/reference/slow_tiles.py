"""Slow, plain LLaVA-NeXT tiles: where visual tokens stand, what each tile keeps, what is fed; and Nuwa's later cut.

A "number" counts one picture's visual tokens, newlines included, in the order in which the prompt has them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .slow_inside import _cut
from .slow_llama import Model
from .slow_methods import Row, SlowResult, _best, _score
from .slow_prelm import Tokens

# (tile, raster index in the tile) of a visual token; None for a newline.
Place = tuple[int, int] | None


def best_resolution(size: tuple[int, int], pinpoints: list[list[int]]) -> tuple[int, int]:
    """Which of the (height, width) pinpoints a picture is fitted into: the most of its pixels, then the least waste."""
    height, width = size
    best, values = (0, 0), (-1, -math.inf)
    for high, wide in pinpoints:
        scale = min(wide / width, high / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        if (used, used - high * wide) > values:
            best, values = (high, wide), (used, used - high * wide)
    return best


def slow_places(size: tuple[int, int], pinpoints: list[list[int]], edge: int, side: int) -> list[Place]:
    """Where each visual token of a (height, width) picture stands: the thumbnail, then rows of tiles and newlines.

    edge: of a tile, in pixels; side: in patches. Padding is cut away on one axis, equally on both sides.
    """
    height, width = size
    high, wide = best_resolution(size, pinpoints)
    rows, columns = high // edge * side, wide // edge * side
    above, before = 0, 0
    if width / height > columns / rows:
        above = (rows - int(round(height * columns / width, 7))) // 2
    else:
        before = (columns - int(round(width * rows / height, 7))) // 2
    places: list[Place] = [(0, patch) for patch in range(side * side)]
    for row in range(above, rows - above):
        for column in range(before, columns - before):
            tile = 1 + row // side * (columns // side) + column // side
            places.append((tile, row % side * side + column % side))
        places.append(None)
    return places


def slow_shares(count: int, sizes: list[int]) -> list[int]:
    """A count in proportion to sizes, no more than they hold; what is missing goes to the largest remainders.

    Of equal remainders the first is served.
    """
    total = sum(sizes)
    count = min(count, total)
    shares = [count * size // total for size in sizes]
    remainders = [count * size % total for size in sizes]
    while sum(shares) < count:
        number = remainders.index(max(remainders))
        shares[number] += 1
        remainders[number] = -1
    return shares


@dataclass
class Fed:
    """What the language model gets of a picture: features (m, D); for each the number it stands for, -1 for none."""

    features: Tensor
    numbers: list[int]
    labels: list[int]


def slow_fed(
    places: list[Place], newline: Tensor, count: int, tiles: list[Tokens], labels: list[list[int]], ordered: bool
) -> Fed:
    """The tokens of all tiles, and newlines (D) where `count` is more than there are patches.

    tiles: per tile, features and the patch that each stands for, of those that are there. labels: per tile, the
    cluster of each token, from 0; or none. ordered: by number; else newlines come first, then tile after tile.
    """
    spare = [number for number, place in enumerate(places) if place is None]
    spare = spare[: max(0, count - (len(places) - len(spare)))]
    fed = [(newline, number, -1) for number in spare]
    clusters = 0
    for tile, (features, patches) in enumerate(tiles):
        numbers = [number for number, place in enumerate(places) if place is not None and place[0] == tile]
        own = labels[tile] if labels else [-1] * len(patches)
        for feature, patch, label in zip(features, patches, own, strict=True):
            fed.append((feature, numbers[patch] if patch >= 0 else -1, label + clusters if label >= 0 else -1))
        clusters += len(set(own))
    if ordered:
        fed.sort(key=lambda token: token[1])
    return Fed(torch.stack([token[0] for token in fed]), [token[1] for token in fed], [token[2] for token in fed])


def slow_nuwa_cut(
    model: Model,
    embeds: Tensor,
    visual: Tensor,
    prompt_len: int,
    *,
    after: int,
    count: int,
    positions: Tensor | None = None,
) -> SlowResult:
    """Nuwa's second part on embeds (tokens, hidden) with visual (tokens,) bool; positions stay.

    After K layers the score is the last prompt token's row of the attention map of layers[K - 1], over all keys.
    positions: (tokens,), of all slots, because Nuwa's first part leaves gaps; 0, 1, 2, ... if None.
    """

    def choose(layer_input: Tensor, row: Row) -> tuple[dict[int, float], list[int]]:
        scores = _score(model, after - 1, layer_input, row, prompt_len, "all", True)
        return scores, _best(scores, count)

    return _cut(model, embeds, visual, prompt_len, after, choose, positions)
