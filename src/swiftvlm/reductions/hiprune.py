"""Anchors of a middle layer, their neighbours, and a deep layer's favourites."""

from dataclasses import dataclass

import torch

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, best_of, chosen, others, top

OBJECT_LAYER = 8  # of CLIP-L's 24, from 0


@dataclass(frozen=True)
class Hierarchy:
    """Anchors, buffers and registers of one tile."""

    alpha: float
    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Anchors and their neighbours by the middle layer, filled up by the layer that made the features."""
        total = len(seen.patch)
        middle, deep = seen.from_all(seen.scaled(OBJECT_LAYER)), seen.from_all(seen.last)
        # A fifth, because each brings four neighbours.
        anchors = top(middle, round(min(kept, total) * self.alpha / 5))
        # As in the official code, which clamps, a row's ends are neighbours of the next row's.
        raster = seen.patch[anchors][:, None] + torch.tensor([-1, 1, -seen.side, seen.side], device=anchors.device)
        # Back from raster indexes to places among the tile's patches: an unpadded tile lacks some of the grid.
        near = torch.isin(seen.patch, raster.clamp(0, seen.side**2 - 1)).nonzero()[:, 0]
        near = near[~torch.isin(near, anchors)]
        index = torch.cat([anchors, best_of(middle, near, kept - len(anchors))])
        return chosen(seen, torch.cat([index, best_of(deep, others(index, total), kept - len(index))]))
