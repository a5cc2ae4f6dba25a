"""Patches that stand out, each enriched by its like, and one token of all others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, cosines, others, top

NEAREST = 32  # patches that enrich a kept one


@dataclass(frozen=True)
class Outstanding:
    """Kept patches in order of attention, then with `plus` a grid, and one token made of all others."""

    plus: bool
    adaptive: bool
    positions: Positions
    ordered: bool = False

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """At most `kept` tokens, the one made of the others among them."""
        # One behind the layer that made LLaVA's features: the official hooks sit on the last one, layers[23].
        layer = min(seen.depth, seen.layers - 1)
        keys, query = _joined(seen.keys(layer)), _joined(seen.queries(layer))[0]
        # Softmax over [CLS] and the whole grid, before the patches that an unpadded tile lacks are left out.
        received = torch.softmax(keys @ query / keys.shape[1] ** 0.5, dim=0)[1:][seen.patch]
        index = self._index(received, kept - 1)
        # A small budget's share of one of many tiles may be 0.
        if not kept:
            return Reduced(seen.embeds[:0], index)
        features, alike = seen.features.float(), cosines(keys[1:][seen.patch])
        own = torch.arange(len(alike), device=alike.device)
        # Nobody enriches itself: it sorts last, and is cut off even where there are fewer than `NEAREST` others.
        alike[own, own] = -torch.inf
        near = alike[index].sort(dim=1, descending=True, stable=True).indices[:, : min(NEAREST, len(alike) - 1)]
        # Weights are not normalised, as in the official code: attention is small, and so is what is added.
        enriched = features[index] + (received[near][..., None] * features[near]).sum(1)
        rest = others(index, len(received))
        extra = (received[rest][:, None] * features[rest]).sum(0, keepdim=True)
        none = torch.full((1,), -1, device=index.device)
        return Reduced(seen.project(torch.cat([enriched, extra])), torch.cat([index, none]))

    def _index(self, received: Tensor, count: int) -> Tensor:
        """The best `count`, or the outliers; or the most of them that leave room for the grid that goes with them."""
        ranked = top(received, len(received))
        best = min(_outliers(received), count) if self.adaptive else count
        if not self.plus:
            return ranked[: max(best, 0)]
        if self.adaptive and len(found := _with_grid(ranked, max(best, 1))) <= count:
            return found
        # More outstanding patches make a finer grid: fewer of them, until both fit.
        for best in range(count, 0, -1):
            kept = _with_grid(ranked, best)
            if len(kept) <= count:
                # What the next coarser grid leaves room for goes to the next best, so that a budget is met.
                more = ranked[~torch.isin(ranked, kept)]
                return torch.cat([kept, more[: count - len(kept)]])
        return ranked[: max(count, 0)]


def _with_grid(ranked: Tensor, best: int) -> Tensor:
    """The first `best`, and those of a grid, finer the more they are, that are not among them: (patches,)."""
    # Officially arange(0, 575, int(step / 3)) with step = int(1 / ratio): the last patch is never on the grid.
    grid = torch.arange(0, len(ranked) - 1, max(1, len(ranked) // best // 3), device=ranked.device)
    return torch.cat([ranked[:best], grid[~torch.isin(grid, ranked[:best])]])


def _joined(heads: Tensor) -> Tensor:
    """(heads, tokens, head_dim) as one wide head."""
    return heads.transpose(0, 1).flatten(1)


def _outliers(received: Tensor) -> int:
    """Values above the third quartile by more than 1.5 times the distance of the quartiles."""
    first, third = torch.quantile(received, 0.25), torch.quantile(received, 0.75)
    return int((received > third + 1.5 * (third - first)).sum())
