"""HoloV: every stretch of the image gets a share of the tokens, by attention and variety."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Preset
from swiftvlm.methods.tiles import Tiled
from swiftvlm.reductions.holov import Shared
from swiftvlm.stage import Reduction

MOST = 1e6  # of `alpha`: what attention says would be lost in rounding


@dataclass(frozen=True)
class HoloV(Tiled):
    """HoloV (NeurIPS 2025, arXiv:2510.02912): shares for `crops` stretches of the image, by attention and variety.

    Follows the official code: a patch's score is 1000 x its [CLS] attention plus `alpha` x the variance of its cosines
    within its crop; crops get shares by their mean score and keep what [CLS] looks at most. That variance is brought to
    the size of the crop's own attention, so that shares follow attention all but alone: that is what the code does.
    Two flaws of that code are not followed: what a crop has no room for goes to others instead of being padded with
    zeros, and tokens come in raster order instead of by attention within a crop. Crops are stretches of the raster
    order (of 36 patches where there are 576), not windows. Numbered afresh.
    """

    name: ClassVar[str] = "holov"
    summary: ClassVar[str] = "before the model: a share for every stretch of the image"
    paper: ClassVar[str] = "arXiv:2510.02912"
    source: ClassVar[str] = "official code; two flaws mended"
    # Written into the official call.
    presets: ClassVar[Mapping[str, Preset]] = {"64": Preset((0,), ((64, 0),))}

    # The official code's for LLaVA (its version for Qwen has alpha 1).
    alpha: float = 0.09
    crops: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.alpha <= MOST:
            raise MethodError(f"alpha is the weight of variety, in [0, {MOST:g}], got {self.alpha}")
        if self.crops < 1:
            raise MethodError(f"crops is a number of stretches of at least 1, got {self.crops}")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Shared(self.alpha, self.crops, self.positions)
