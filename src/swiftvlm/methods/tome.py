"""ToMe: tokens merged inside the vision tower."""

from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.methods.tiles import Tiled
from swiftvlm.reductions.tome import Merging
from swiftvlm.stage import Reduction


@dataclass(frozen=True)
class ToMe(Tiled):
    """ToMe (ICLR 2023, arXiv:2210.09461): in every layer of the tower the most alike tokens become one.

    Follows the official code: between attention and MLP, even places merge into odd ones by the cosine of keys (mean
    over heads), size-weighted, with proportional attention, [CLS] protected. As many merge in every layer, so that the
    count is met exactly (in a tower too shallow for that the last layer merges in several rounds). Fed in raster order
    by the patch that each token grew from (the official order is not a raster), numbered afresh.

    The tower's layers run a second time for it, on ever fewer tokens: this compares what merging does to answers, and
    does not make the tower itself faster.
    """

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "inside the tower: the most alike patches become one"
    paper: ClassVar[str] = "arXiv:2210.09461"
    source: ClassVar[str] = "official code; raster order restored"

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Merging(self.positions)
