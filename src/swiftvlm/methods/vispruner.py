"""VisPruner: patches that [CLS] looks at, and others that differ, before the language model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Stage
from swiftvlm.tower import Reduced, Seen, chosen, top, unit

AT_ONCE = 8  # patches that a round removes at most


@dataclass(frozen=True)
class ImportantAndDiverse:
    """`ratio` of the tokens by attention, the others by diversity."""

    ratio: float
    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Important patches, and what is left of the rest when the most redundant are removed."""
        ranked = top(seen.from_cls(seen.last).mean(0), len(seen.patch))
        important = int(kept * self.ratio)
        diverse = _diverse(unit(seen.features), ranked[important:], kept - important)
        return chosen(seen, torch.cat([ranked[:important], diverse]))


def _diverse(units: Tensor, left: Tensor, count: int) -> Tensor:
    """Halve, remove from the first half what is most like something in the second, and go on until `count` are left."""
    while len(left) > count > 0:
        even, odd = left[::2], left[1::2]
        alike = (units[even] @ units[odd].T).amax(1)
        # Among equals the lower patch stays: higher ones first, then a stable sort.
        high = even.argsort(descending=True)
        gone = high[alike[high].argsort(descending=True, stable=True)][: min(AT_ONCE, len(left) - count)]
        stays = torch.ones(len(even), dtype=torch.bool, device=even.device)
        stays[gone] = False
        left = torch.cat([even[stays], odd])
    return left if count > 0 else left[:0]


@dataclass(frozen=True)
class VisPruner(Method):
    """VisPruner (Zhang et al., ICCV 2025, arXiv:2412.01818): important patches by [CLS] attention, diverse ones beside.

    Follows the official code: `ratio` of the tokens are those with the largest [CLS] attention (mean over heads of the
    layer that made the features); of the rest, round by round, every second patch in order of attention is compared
    with those between and the most similar go. Raster order, numbered afresh. An odd rest, at which the official code
    breaks, gives the first half one more.
    """

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "before the model: what [CLS] looks at, and what differs"
    paper: ClassVar[str] = "arXiv:2412.01818"
    source: ClassVar[str] = "official code; odd counts mended"

    counts: tuple[int, ...] | None = None
    ratio: float = 0.5
    positions: Positions = "renumbered"

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise MethodError(f"ratio is the important share of the tokens, in [0, 1], got {self.ratio}")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return ImportantAndDiverse(self.ratio, self.positions)

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """None inside the model."""
        return ()
