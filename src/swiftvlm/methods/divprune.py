"""DivPrune: patches as far apart as possible, before the language model."""

from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.methods.base import Method
from swiftvlm.reductions.divprune import Farthest
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Stage


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
