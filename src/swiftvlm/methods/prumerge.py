"""LLaVA-PruMerge and PruMerge+: patches that stand out, each enriched by its like, before the language model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from swiftvlm.methods.base import Method
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Stage
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
        layer = min(seen.depth, seen.layers - 1)
        keys, query = _joined(seen.keys(layer)), _joined(seen.queries(layer))[0]
        received = torch.softmax(keys @ query / keys.shape[1] ** 0.5, dim=0)[1:][seen.patch]
        count = min(_outliers(received), kept - 1) if self.adaptive else kept - 1
        index = self._index(received, count)
        if not kept:
            return Reduced(seen.embeds[:0], index)
        features, alike = seen.features.float(), cosines(keys[1:][seen.patch])
        own = torch.arange(len(alike), device=alike.device)
        alike[own, own] = -torch.inf
        near = alike[index].sort(dim=1, descending=True, stable=True).indices[:, : min(NEAREST, len(alike) - 1)]
        # Weights are not normalised, as in the official code: attention is small, and so is what is added.
        enriched = features[index] + (received[near][..., None] * features[near]).sum(1)
        rest = others(index, len(received))
        extra = (received[rest][:, None] * features[rest]).sum(0, keepdim=True)
        none = torch.full((1,), -1, device=index.device)
        return Reduced(seen.project(torch.cat([enriched, extra])), torch.cat([index, none]))

    def _index(self, received: Tensor, count: int) -> Tensor:
        """The best `count`; or the most of them that leave room for the grid that goes with them."""
        ranked = top(received, len(received))
        if not self.plus:
            return ranked[: max(count, 0)]
        for best in range(count, 0, -1):
            grid = torch.arange(0, len(received) - 1, max(1, len(received) // best // 3), device=received.device)
            kept = torch.cat([ranked[:best], grid[~torch.isin(grid, ranked[:best])]])
            if len(kept) <= count:
                # What the next coarser grid leaves room for goes to the next best, so that a budget is met.
                more = ranked[~torch.isin(ranked, kept)]
                return torch.cat([kept, more[: count - len(kept)]])
        return ranked[: max(count, 0)]


def _joined(heads: Tensor) -> Tensor:
    """(heads, tokens, head_dim) as one wide head."""
    return heads.transpose(0, 1).flatten(1)


def _outliers(received: Tensor) -> int:
    """Values above the third quartile by more than 1.5 times the distance of the quartiles."""
    first, third = torch.quantile(received, 0.25), torch.quantile(received, 0.75)
    return int((received > third + 1.5 * (third - first)).sum())


@dataclass(frozen=True)
class PruMerge(Method):
    """LLaVA-PruMerge (Shang et al., ICCV 2025, arXiv:2403.15388): what [CLS] looks at, enriched, and the rest in one.

    Follows the official code: attention with the tower's last keys and [CLS]'s query, all heads as one; every kept
    patch gains the attention-weighted sum of the 32 patches of most similar keys; one more token is that of all
    dropped ones. Fed in order of attention, numbered afresh, which loses where things are.

    - `counts`: tokens, the last one included.
    - `adaptive`: only patches whose attention is an outlier (above Q3 + 1.5 IQR) are kept, each image its own number,
      never more than the plan's. The official code pools a batch for that; here every tile decides for itself.
    """

    name: ClassVar[str] = "prumerge"
    summary: ClassVar[str] = "before the model: what stands out, enriched by its like"
    paper: ClassVar[str] = "arXiv:2403.15388"
    source: ClassVar[str] = "official code; each tile by itself"

    counts: tuple[int, ...] | None = None
    adaptive: bool = False
    positions: Positions = "renumbered"

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Outstanding(plus=False, adaptive=self.adaptive, positions=self.positions)

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """None inside the model."""
        return ()


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """LLaVA-PruMerge+: as PruMerge, with a grid of patches beside the outstanding ones.

    The grid's step follows from how many outstanding patches there are, a third of their mean distance; as many of
    them are taken as leave room for it within the count, and the next best where the grid leaves some.
    """

    name: ClassVar[str] = "prumerge+"
    summary: ClassVar[str] = "before the model: PruMerge with a grid beside it"
    source: ClassVar[str] = "official code; filled up to its count"

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Outstanding(plus=True, adaptive=self.adaptive, positions=self.positions)
