"""Shares of stretches of the image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, best_of, chosen, cosines, top

EPSILON = 1e-6  # as in the official code


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
        # Sizes differ by one where `crops` does not divide them (officially 576 / 16 = 36).
        runs = torch.arange(total, device=received.device).tensor_split(crops)
        # Variety has a say in the shares only: inside its crop a patch is chosen by attention alone.
        means = torch.stack([self._score(1000 * received[run], _variety(seen.embeds[run])) for run in runs])
        counts = _shares(means, [len(run) for run in runs], min(kept, total))
        return chosen(seen, torch.cat([best_of(received, run, count) for run, count in zip(runs, counts, strict=True)]))

    def _score(self, strength: Tensor, variety: Tensor) -> Tensor:
        """A crop's: variety is scaled to the crop's own attention, so that it says hardly more than that."""
        scale = strength.abs().mean() / (variety.abs().mean() + EPSILON)
        return (strength + self.alpha * variety * scale).mean()


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
    # Officially not handed on: the model is fed zeros instead.
    for crop in ranked:
        moved = min(surplus, sizes[crop] - counts[crop])
        counts[crop], surplus = counts[crop] + moved, surplus - moved
    return counts
