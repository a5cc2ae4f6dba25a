"""The best patches of every region, some gathering their surroundings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, best_of, top, unit

# Both from the official code; the paper's pillars are the top quartile by the norm of keys.
SQUARED_RADIUS = 280  # in cells of a 24 x 24 grid
PILLARS = 0.55  # quantile of the scores from which a token gathers nothing


@dataclass(frozen=True)
class Regions:
    """The best patches of 2 x 2 regions."""

    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Raster order; collectors gain the mean of what is near and like them, pillars stay as they are."""
        received = seen.from_cls(seen.last).sum(0)
        index = best_of(received, _candidates(received, seen, kept), kept).sort().values
        if not len(index):
            return Reduced(seen.embeds[index], index)
        # hidden_states[16..24] of CLIP-L, both ends included: also those of the layer behind the features.
        depths = range(seen.scaled(16), seen.layers + 1)
        metric = unit(torch.stack([seen.patches(seen.states(depth)).float() for depth in depths]).mean(0))
        place = torch.stack([seen.patch // seen.side, seen.patch % seen.side], dim=-1).float()
        radius = SQUARED_RADIUS**0.5 * seen.side / 24
        apart = torch.cdist(place[index], place, compute_mode="donot_use_mm_for_euclid_dist")
        # (k, m): what each kept patch takes from every patch of the tile, kept ones among them.
        weights = (metric[index] @ metric.T).clamp(min=0) * (1 - apart / radius).clamp(min=0)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        # A collector's own share counts in the sum that weights are divided by, and then becomes 1.
        weights.scatter_(1, index[:, None], 1.0)
        features = seen.features.float()
        pillar = received[index] >= torch.quantile(received[index], PILLARS)
        states = torch.where(pillar[:, None], features[index], weights @ features)
        # Pillars are the embeddings that there are, not projected anew: exactly what an unpruned model is given.
        return Reduced(torch.where(pillar[:, None], seen.embeds[index], seen.project(states)), index)


def _candidates(received: Tensor, seen: Seen, count: int) -> Tensor:
    """The best n of every region, n as small as makes `count` in all; ascending."""
    high = (seen.side + 1) // 2
    # Where the side is odd, regions at the right and lower edge have two patches, and the last one has one.
    region = seen.patch // seen.side // 2 * high + seen.patch % seen.side // 2
    order = top(received, len(received))
    # How many of the same region come before each, by score.
    same = region[order][:, None] == region[order][None]
    rank = torch.empty_like(order).scatter_(0, order, torch.tril(same, -1).sum(1))
    # No region has more than four, and `each` stays 4 where even these do not reach `count`.
    for each in range(1, 5):
        if int((rank < each).sum()) >= count:
            break
    return (rank < each).nonzero()[:, 0]
