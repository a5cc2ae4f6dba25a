"""Nuwa: patches from every corner of the image, some gathering their surroundings, and one cut inside the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.budget import Budget, Slot
from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset, at_depth, proportional
from swiftvlm.plans import Cut
from swiftvlm.reductions.nuwa import Regions
from swiftvlm.scores import TextAttention
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Stage

PARTS = (336, 48)  # tokens before and behind the cut inside, of the published 192


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
