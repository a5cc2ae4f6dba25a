"""DivPrune: patches as far apart as possible, before the language model."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from swiftvlm.methods.base import Method
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Stage
from swiftvlm.tower import Reduced, Seen, chosen, cosines, first_max


@dataclass(frozen=True)
class Farthest:
    """Max-min diversity of the projected patches."""

    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Farthest-point sampling by 1 - cosine, from the patch farthest from its nearest neighbour."""
        apart = 1 - cosines(seen.embeds)
        own = torch.arange(len(apart), device=apart.device)
        gap = apart.clone()
        gap[own, own] = torch.inf
        near, picks = gap.amin(1), list[int]()
        for _ in range(min(kept, len(apart))):
            pick = first_max(near)
            near = torch.minimum(near, apart[pick]) if picks else apart[pick].clone()
            picks.append(pick)
            near[picks] = -torch.inf
        return chosen(seen, torch.tensor(picks, dtype=torch.long, device=apart.device))


@dataclass(frozen=True)
class DivPrune(Method):
    """DivPrune (Alvar et al., CVPR 2025, arXiv:2503.02175): patches as far apart as possible, attention not looked at.

    Follows the official code: max-min distance (1 - cosine) on the projected features; numbered afresh.
    """

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "before the model: patches as unlike each other as possible"
    paper: ClassVar[str] = "arXiv:2503.02175"
    source: ClassVar[str] = "official code"

    counts: tuple[int, ...] | None = None
    positions: Positions = "renumbered"

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Farthest(self.positions)

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """None inside the model."""
        return ()
