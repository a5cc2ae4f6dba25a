"""Half of the tokens from windows, half from anywhere."""

from dataclasses import dataclass

import torch

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, best_of, nearest, others, unit

WINDOWS = 4  # along each edge
SHALLOW = 5  # of CLIP-L's 24 layers, from 0


@dataclass(frozen=True)
class Scan:
    """Half of the tokens from windows by a shallow layer, half from anywhere by the layer that made the features."""

    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Raster order; every dropped patch is averaged into the kept one most like it, behind the projector."""
        total = len(seen.patch)
        shallow = seen.from_cls(seen.scaled(SHALLOW)).mean(0)
        deep = seen.from_cls(seen.last).mean(0)
        row, column = seen.patch // seen.side, seen.patch % seen.side
        # 6 x 6 patches of 24 x 24; on sides that 4 does not divide, windows differ by a row or a column.
        window = row * WINDOWS // seen.side * WINDOWS + column * WINDOWS // seen.side
        # What is lost in rounding goes to the deep layer's choice; the official code feeds fewer tokens.
        each = int(kept / 2) // WINDOWS**2
        local = [best_of(shallow, (window == one).nonzero()[:, 0], each) for one in range(WINDOWS**2)]
        index = torch.cat(local)
        index = torch.cat([index, best_of(deep, others(index, total), min(kept, total) - len(index))]).sort().values
        dropped, embeds = others(index, total), seen.embeds.float()
        if not len(index) or not len(dropped):
            return Reduced(seen.embeds[index], index)
        belongs = torch.nn.functional.one_hot(nearest(unit(embeds), dropped, index), len(index)).float()
        mean = (embeds[index] + belongs.T @ embeds[dropped]) / (1 + belongs.sum(0))[:, None]
        return Reduced(mean.to(seen.embeds), index)
