"""TopV: what optimal transport between a layer's inputs and outputs moves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset
from swiftvlm.ratings.topv import Transported
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage


@dataclass(frozen=True)
class TopV(Method):
    """TopV (CVPR 2025, arXiv:2503.18278), reconstructed: a transport plan instead of attention, and a grid of others.

    Abstract, a figure's caption and a third-party version were read. Costs between the states that enter a layer and
    those that leave it: squared distance, distance in the grid, and a little for being far from the middle, which a
    plan with fitted rows cancels. Three Sinkhorn steps, each ending on columns: ended on rows, every token would be
    worth the same. Every `recover`-th
    token that was not chosen stays too, or fewer where they would be more than five sixths of the count (ours).
    Original positions. Presets are FastV's averages.
    """

    name: ClassVar[str] = "topv"
    summary: ClassVar[str] = "optimal transport between a layer's inputs and outputs"
    paper: ClassVar[str] = "arXiv:2503.18278"
    source: ClassVar[str] = "reconstruction from the abstract and other people's code"
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset((2,), ((166, 0),)),
        "128": Preset((2,), ((98, 0),)),
        "64": Preset((2,), ((29, 0),)),
    }

    after: int = 2
    counts: tuple[int, ...] | None = None
    # The third-party version's; the paper's was not found.
    recover: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recover < 2:
            raise MethodError(f"recover is a step over unchosen tokens of at least 2, got {self.recover}")

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage that drops."""
        return (Stage(self.after, Transported(self.recover)),)
