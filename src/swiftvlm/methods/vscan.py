"""VScan: windows and the whole image before the language model, one more cut inside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.budget import Budget, Slot
from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset, at_depth, proportional
from swiftvlm.plans import Cut
from swiftvlm.reductions.vscan import Scan
from swiftvlm.scores import TextAttention
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Stage

PARTS = (96, 32)  # tokens before and behind the cut inside, of the published setting


@dataclass(frozen=True)
class VScan(Method):
    """VScan (NeurIPS 2025, arXiv:2505.22654): a local and a global scan of the tower, then one cut inside the model.

    Follows the official code, as far as read: of the T tokens that enter the model, int(T / 2) // 16 come from each of
    4 x 4 windows by the tower's layer 5 of 24, the others by the layer that made the features (both [CLS] attention,
    mean over heads; no token is lost where T / 2 is no multiple of 16); all are averages. After layer 16 of 32 a third
    of them stays, ranked as in PyramidDrop. Numbered afresh both times.

    - `after`: layers run before the cut inside, one number; None: 16 of 32 as a fraction of the depth.
    - `counts`: tokens before it, and behind it.
    """

    name: ClassVar[str] = "vscan"
    summary: ClassVar[str] = "before the model: windows and the whole image; one cut inside"
    paper: ClassVar[str] = "arXiv:2505.22654"
    source: ClassVar[str] = "official code, read in part"
    presets: ClassVar[Mapping[str, Preset]] = {"64": Preset((0, 16), ((96, 0), (32, 0)))}

    after: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None
    positions: Positions = "renumbered"

    def __post_init__(self) -> None:
        if self.after is not None and len(self.after) != 1:
            raise MethodError(f"after names the one cut inside the model, such as (16,), got {self.after}")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Scan(self.positions)

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One cut."""
        (after,) = self.after or at_depth((16,), shape.layers)
        return (Stage(after, TextAttention("next"), positions=self.positions),)

    def _cuts(
        self, slots: Sequence[Slot], shape: ModelShape, visual: int, budget: Budget, preset: str | None
    ) -> tuple[Cut, ...]:
        if budget is None:
            return super()._cuts(slots, shape, visual, budget, preset)
        return proportional(PARTS, slots, shape.layers, visual, budget)
