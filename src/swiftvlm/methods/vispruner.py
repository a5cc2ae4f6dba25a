"""VisPruner: patches that [CLS] looks at, and others that differ, before the language model."""

from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.tiles import Tiled
from swiftvlm.reductions.vispruner import ImportantAndDiverse
from swiftvlm.stage import Reduction


@dataclass(frozen=True)
class VisPruner(Tiled):
    """VisPruner (Zhang et al., ICCV 2025, arXiv:2412.01818): important patches by [CLS] attention, diverse ones beside.

    Follows the official code: `ratio` of the tokens are those with the largest [CLS] attention (mean over heads of the
    layer that made the features); of the rest, in order of attention, every second patch is compared with
    those between and the most similar go, round by round; survivors go on in order of likeness. Raster order, numbered
    afresh. An odd rest, at which the official code breaks, gives the first half one more.
    """

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "before the model: what [CLS] looks at, and what differs"
    paper: ClassVar[str] = "arXiv:2412.01818"
    source: ClassVar[str] = "official code; odd counts mended"

    # The official default; its README runs .75 as well.
    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.ratio <= 1.0:
            raise MethodError(f"ratio is the important share of the tokens, in [0, 1], got {self.ratio}")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return ImportantAndDiverse(self.ratio, self.positions)
