"""What [CLS] looks at, in clusters of alike keys."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, top

WIDTH = 8.0  # of the density's kernel, in units of keys
NEAR = (3, 5)  # of the grid's patches in a row, as integers: exactly .6 is near


@dataclass(frozen=True)
class Clustered:
    """The best patches of a tile by [CLS] attention, each with the cluster it is in."""

    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Raster order; as many clusters as the next cut may merge tokens."""
        index = top(seen.from_cls(seen.last).sum(0), kept).sort().values
        # (k, heads * head_dim), not normalised: clusters are by distance.
        keys = seen.patches(seen.keys(seen.last)).transpose(0, 1).flatten(1)[index]
        place = torch.stack([seen.patch // seen.side, seen.patch % seen.side], dim=1)[index]
        square = ((place[:, None] - place[None]) ** 2).sum(-1)
        near = square * NEAR[1] ** 2 <= (NEAR[0] * seen.side) ** 2
        labels = clusters(keys, near, min(seen.clusters, len(index)))
        return Reduced(seen.embeds[index], index, labels=labels)


def clusters(keys: Float[Tensor, "k dim"], near: Bool[Tensor, "k k"], count: int) -> Int[Tensor, " k"]:
    """The cluster of each token by density peaks, numbered in the order of their centres; -1 if there are to be none.

    `near`: which tokens are neighbours enough in the grid to belong together.
    """
    if not count:
        return torch.full((len(keys),), -1, device=keys.device)
    gap = torch.cdist(keys, keys, compute_mode="donot_use_mm_for_euclid_dist")
    # At least 1, from the token itself: an orphan's product below is infinite, never 0 * inf.
    density = torch.exp(-((gap / WIDTH) ** 2)).sum(1)
    order = density.sort(descending=True, stable=True).indices
    rank = order.argsort()
    # [token, other]: by rank, so that of equally dense tokens the lower one counts as the denser.
    above = (rank[None] < rank[:, None]) & near
    nearest = gap.masked_fill(~above, torch.inf).min(1)
    orphan = ~above.any(1)
    # The nearest denser one of an orphan is infinitely far: they come first.
    centres = top(density * nearest.values, count).sort().values
    labels = torch.full_like(rank, -1)
    labels[centres] = torch.arange(count, device=keys.device)
    # Parents are denser than their children, so that from the densest down every parent has its label.
    parent = torch.where(orphan, centres[gap[:, centres].argmin(1)], nearest.indices)
    for token in order.tolist():
        if labels[token] < 0:
            labels[token] = labels[parent[token]]
    return labels
