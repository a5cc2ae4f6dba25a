"""HiPrune: anchors of a middle layer of the tower with their neighbours, and a deep layer's favourites."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Preset
from swiftvlm.methods.tiles import Tiled
from swiftvlm.reductions.hiprune import Hierarchy
from swiftvlm.stage import Reduction


@dataclass(frozen=True)
class HiPrune(Tiled):
    """HiPrune (arXiv:2508.00553): `alpha` / 5 of the tokens are anchors of a middle layer of the tower.

    Follows the official code: scores are the attention that a patch receives, mean over heads and all tokens; anchors
    by layer 9 of 24 (its place in another tower by fraction), then their four neighbours, then the best of the layer
    that made the features. Raster order, numbered afresh.
    """

    name: ClassVar[str] = "hiprune"
    summary: ClassVar[str] = "before the model: anchors, their neighbours, a deep layer's favourites"
    paper: ClassVar[str] = "arXiv:2508.00553"
    source: ClassVar[str] = "official code"
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset((0,), ((192, 0),)),
        "128": Preset((0,), ((128, 0),)),
        "64": Preset((0,), ((64, 0),)),
    }

    # The official setting: 4, 3 and 1 anchors at 192, 128 and 64 tokens.
    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.alpha <= 1.0:
            raise MethodError(f"alpha is the share of anchors with their four neighbours, in [0, 1], got {self.alpha}")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Hierarchy(self.alpha, self.positions)
