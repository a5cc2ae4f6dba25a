"""What methods before the language model share: tiles reduced one by one, and in two of them one more cut inside."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.budget import Slot
from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, at_depth, proportional
from swiftvlm.plans import Cut
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Score, Stage


@dataclass(frozen=True)
class Tiled(Method):
    """Every tile on its own, before the language model; nothing inside it."""

    counts: tuple[int, ...] | None = None
    # Officially the model is just given fewer features, and counts them; Nuwa and STAR say otherwise.
    positions: Positions = "renumbered"

    @property
    @abstractmethod
    def reduction(self) -> Reduction:
        """What becomes of a tile."""

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """None inside the model."""
        return ()


@dataclass(frozen=True)
class TiledThenCut(Tiled):
    """The same, and one cut inside, by attention from text.

    `after`: layers run before the cut, one number; None: 16 of 32 as a fraction of the depth. `counts`: tokens before
    it, and behind it; `parts`: the proportion that a budget keeps.
    """

    parts: ClassVar[tuple[int, int]]
    score: ClassVar[Score]

    after: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after is not None and len(self.after) != 1:
            raise MethodError(f"after names the one cut inside the model, such as (16,), got {self.after}")

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One cut."""
        (after,) = self.after or at_depth((16,), shape.layers)
        return (Stage(after, self.score, positions=self.positions),)

    def _solve(self, slots: Sequence[Slot], layers: int, visual: int, average: float) -> tuple[Cut, ...]:
        return proportional(self.parts, slots, layers, visual, average)
