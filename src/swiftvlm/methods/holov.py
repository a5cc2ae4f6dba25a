"""HoloV: every stretch of the image gets a share of the tokens, by attention and variety."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Stage
from swiftvlm.tower import Reduced, Seen, best_of, chosen, cosines, top


@dataclass(frozen=True)
class Shared:
    """Shares of crops, which are consecutive runs of patches in raster order."""

    alpha: float
    crops: int
    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """The best-attended patches of every crop, as many as its share."""
        received, total = seen.from_cls(seen.last).mean(0), len(seen.patch)
        crops = min(self.crops, total)
        ends = [crop * total // crops for crop in range(crops + 1)]
        runs = [torch.arange(a, b, device=received.device) for a, b in pairwise(ends)]
        strength = 1000 * received
        variety = torch.cat([_variety(seen.embeds[run]) for run in runs])
        size = variety.abs().mean()
        scores = strength + self.alpha * variety * (strength.abs().mean() / size if size > 0 else 0.0)
        means = torch.stack([scores[run].mean() for run in runs])
        counts = _shares(means, [len(run) for run in runs], min(kept, total))
        return chosen(seen, torch.cat([best_of(received, run, count) for run, count in zip(runs, counts, strict=True)]))


def _variety(embeds: Tensor) -> Tensor:
    """How much each patch's cosines to the others of its crop differ: (c,). The 0 for itself counts as a deviation."""
    size = len(embeds)
    if size == 1:
        return torch.zeros(1, device=embeds.device)
    alike = cosines(embeds).fill_diagonal_(0.0)
    mean = alike.sum(1, keepdim=True) / (size - 1)
    return (alike - mean).square().sum(1) / (size - 1)


def _shares(means: Tensor, sizes: list[int], count: int) -> list[int]:
    """`count` by score, rounded down, one more for the best; what a crop has no room for fills others, best first."""
    counts = (count * means / means.sum()).floor().long().tolist()
    ranked = top(means, len(sizes)).tolist()
    for crop in ranked[: count - sum(counts)]:
        counts[crop] += 1
    surplus = sum(max(0, own - size) for own, size in zip(counts, sizes, strict=True))
    counts = [min(own, size) for own, size in zip(counts, sizes, strict=True)]
    for crop in ranked:
        moved = min(surplus, sizes[crop] - counts[crop])
        counts[crop], surplus = counts[crop] + moved, surplus - moved
    return counts


@dataclass(frozen=True)
class HoloV(Method):
    """HoloV (NeurIPS 2025, arXiv:2510.02912): shares for `crops` stretches of the image, by attention and variety.

    Follows the official code: a patch's score is 1000 x its [CLS] attention plus `alpha` x the variance of its cosines
    within its crop, brought to the same size; crops get shares by their mean score and keep what [CLS] looks at most.
    Two flaws of that code are not followed: what a crop has no room for goes to others instead of being padded with
    zeros, and tokens come in raster order instead of by attention within a crop. Crops are runs of 36 patches in raster
    order, not windows. Numbered afresh.
    """

    name: ClassVar[str] = "holov"
    summary: ClassVar[str] = "before the model: a share for every stretch of the image"
    paper: ClassVar[str] = "arXiv:2510.02912"
    source: ClassVar[str] = "official code; two flaws mended"

    counts: tuple[int, ...] | None = None
    alpha: float = 0.09
    crops: int = 16
    positions: Positions = "renumbered"

    def __post_init__(self) -> None:
        if self.crops < 1:
            raise MethodError(f"crops is a number of stretches of at least 1, got {self.crops}")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Shared(self.alpha, self.crops, self.positions)

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """None inside the model."""
        return ()
