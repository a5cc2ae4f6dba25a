"""Nuwa: patches from every corner of the image, some gathering their surroundings, and one cut inside the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from swiftvlm.budget import Budget, Slot
from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset, at_depth, proportional
from swiftvlm.plans import Cut
from swiftvlm.scores import TextAttention
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Stage
from swiftvlm.tower import Reduced, Seen, best_of, top, unit

SQUARED_RADIUS = 280  # in cells of a 24 x 24 grid
PILLARS = 0.55  # quantile of the scores from which a token gathers nothing
PARTS = (336, 48)  # tokens before and behind the cut inside, of the published 192


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
        depths = range(seen.scaled(16), seen.layers + 1)
        metric = unit(torch.stack([seen.patches(seen.states(depth)).float() for depth in depths]).mean(0))
        place = torch.stack([seen.patch // seen.side, seen.patch % seen.side], dim=-1).float()
        radius = SQUARED_RADIUS**0.5 * seen.side / 24
        apart = torch.cdist(place[index], place, compute_mode="donot_use_mm_for_euclid_dist")
        weights = (metric[index] @ metric.T).clamp(min=0) * (1 - apart / radius).clamp(min=0)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        # A collector's own share counts in the sum that weights are divided by, and then becomes 1.
        weights.scatter_(1, index[:, None], 1.0)
        features = seen.features.float()
        pillar = received[index] >= torch.quantile(received[index], PILLARS)
        states = torch.where(pillar[:, None], features[index], weights @ features)
        return Reduced(torch.where(pillar[:, None], seen.embeds[index], seen.project(states)), index)


def _candidates(received: Tensor, seen: Seen, count: int) -> Tensor:
    """The best n of every region, n as small as makes `count` in all; ascending."""
    high = (seen.side + 1) // 2
    region = seen.patch // seen.side // 2 * high + seen.patch % seen.side // 2
    order = top(received, len(received))
    # How many of the same region come before each, by score.
    same = region[order][:, None] == region[order][None]
    rank = torch.empty_like(order).scatter_(0, order, torch.tril(same, -1).sum(1))
    for each in range(1, 5):
        if int((rank < each).sum()) >= count:
            break
    return (rank < each).nonzero()[:, 0]


@dataclass(frozen=True)
class Nuwa(Method):
    """Nuwa (ICLR 2026, arXiv:2602.02951): coverage of the grid and true positions, which keep boxes.

    Follows the official code: of every 2 x 2 region the best by [CLS] attention (sum over heads), of these the best
    T; those below the .55 quantile of their scores gather the patches around them, weighted by distance and by cosine
    of the upper third of the tower. After layer 16 of 32 a seventh stays, ranked by the layer just run from the last
    prompt token. Positions are the true ones throughout.

    - `after`: layers run before the cut inside, one number; None: 16 of 32 as a fraction of the depth.
    - `counts`: tokens before it, and behind it.
    """

    name: ClassVar[str] = "nuwa"
    summary: ClassVar[str] = "before the model: the best of every region, gathering; one cut inside"
    paper: ClassVar[str] = "arXiv:2602.02951"
    source: ClassVar[str] = "official code"
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset((0, 16), ((336, 0), (48, 0))),
        "128": Preset((0, 16), ((224, 0), (32, 0))),
        "64": Preset((0, 16), ((112, 0), (16, 0))),
    }

    after: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None
    positions: Positions = "original"

    def __post_init__(self) -> None:
        if self.after is not None and len(self.after) != 1:
            raise MethodError(f"after names the one cut inside the model, such as (16,), got {self.after}")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Regions(self.positions)

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One cut."""
        (after,) = self.after or at_depth((16,), shape.layers)
        return (Stage(after, TextAttention("previous"), positions=self.positions),)

    def _cuts(
        self, slots: Sequence[Slot], shape: ModelShape, visual: int, budget: Budget, preset: str | None
    ) -> tuple[Cut, ...]:
        if budget is None:
            return super()._cuts(slots, shape, visual, budget, preset)
        return proportional(PARTS, slots, shape.layers, visual, budget)
