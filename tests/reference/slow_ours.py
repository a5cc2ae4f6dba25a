"""Plain rules of what no published code has: SwiftVLM's further fields, and SparseVLM's count by rank.

No model is needed: slots are indexes into a row's input_ids, and lists of slots ascend. Of equal values the lower slot
wins.
"""

import math

import torch
from torch import Tensor

Cells = dict[
    int, tuple[int, int, int, int]
]  # visual slot -> image, tile, row and column; -1 in all but the first: none
Apart = tuple[int, int, int]  # images, tiles and squared cells between two tokens: what comes first weighs more


# Anchors spread over the image


def spread_slots(low: list[int], cells: Cells, count: int) -> list[int]:
    """`count` of the low slots (or all): the first one, then always the one farthest from all that are chosen.

    How far a slot is from the chosen ones is its distance to the nearest of them. Slots without a place (newlines) are
    taken only when no other is left, in order.
    """
    placed = [slot for slot in low if cells[slot][2] >= 0]
    chosen: list[int] = []
    while len(chosen) < min(count, len(placed)):
        left = [slot for slot in placed if slot not in chosen]
        best = left[0]
        for slot in left:
            # Strictly farther only: of equal distances the lower slot wins. Without a chosen one all are equal.
            if chosen and _nearest(slot, chosen, cells) > _nearest(best, chosen, cells):
                best = slot
        chosen.append(best)
    others = [slot for slot in low if slot not in placed]
    return sorted(chosen + others[: max(count - len(chosen), 0)])


def _nearest(slot: int, chosen: list[int], cells: Cells) -> Apart:
    """How far the nearest chosen slot is."""
    return min(_apart(cells[slot], cells[other]) for other in chosen)


def _apart(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> Apart:
    """Distance of two cells. Tiles are far from each other, whatever the cells; images are farther still."""
    images, tiles = abs(one[0] - other[0]), abs(one[1] - other[1])
    squared = (one[2] - other[2]) ** 2 + (one[3] - other[3]) ** 2
    return images, tiles, squared


# Tokens kept for their positions


def coordinates_first(
    scores: dict[int, float], positions: dict[int, float], frequencies: Tensor, share: float
) -> dict[int, float]:
    """The scores (of at most 1), those of coordinate slots raised above all others.

    Half of `share` of the scored slots are those whose position has the largest mean cosine over RoPE's frequencies,
    half those of the largest mean sine; a slot may be both.
    """
    each = round(len(scores) * share / 2)
    cosines = {slot: float((positions[slot] * frequencies).cos().mean()) for slot in scores}
    sines = {slot: float((positions[slot] * frequencies).sin().mean()) for slot in scores}
    first = set()
    for waves in (cosines, sines):
        first.update(sorted(waves, key=lambda slot: (-waves[slot], slot))[:each])
    return {slot: scores[slot] + 1.0 if slot in first else scores[slot] for slot in scores}


# Totals from stage to stage


def tapered_totals(visual: int, layers: int, after: tuple[int, ...], average: float, taper: float) -> list[int]:
    """Visual tokens behind every stage: visual * q, visual * q ** (1 + taper), visual * q ** (1 + 2 taper), ...

    q is the largest in 0..1 whose mean over the layers, not rounded, is at most `average`; then totals round down.
    """

    def totals(q: float) -> list[float]:
        return [visual * q ** (1 + taper * stage) for stage in range(len(after))]

    def mean(q: float) -> float:
        seen = 0.0
        for layer in range(layers):
            stages_run = sum(depth <= layer for depth in after)
            seen += totals(q)[stages_run - 1] if stages_run else visual
        return seen / layers

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) <= average else (low, middle)
    return [int(total + 1e-6) for total in totals(low)]  # a whole number may come out a trifle low


# SparseVLM's first release


def ranked_count(paid: list[dict[int, float]], scale: float, bias: float) -> int:
    """int(rank * scale + bias), at least 1: the rank of the matrix of what every rater pays to every candidate."""
    return max(1, int(rank_of([list(one.values()) for one in paid]) * scale + bias))


def cluster_count(dropped: int) -> int:
    """Of three in ten of the dropped tokens and one more, a tenth and one more; none where nothing was dropped."""
    if dropped == 0:
        return 0
    taken = math.floor(0.3 * dropped) + 1
    return taken // 10 + 1


def rank_of(rows: list[list[float]]) -> int:
    """Rank of float32 rows, by elimination: how many pivots are left that rounding alone cannot explain."""
    matrix = [list(row) for row in rows]
    largest = max((abs(value) for row in matrix for value in row), default=0.0)
    sides = max(len(matrix), len(matrix[0]) if matrix else 0)
    least = largest * sides * torch.finfo(torch.float32).eps
    rank = 0
    while matrix:
        value, line, column = max(
            ((abs(value), i, j) for i, row in enumerate(matrix) for j, value in enumerate(row)), default=(0.0, 0, 0)
        )
        if value <= least:
            break
        pivot = matrix.pop(line)
        for row in matrix:
            factor = row[column] / pivot[column]
            for j in range(len(row)):
                row[j] -= factor * pivot[j]
        rank += 1
    return rank
