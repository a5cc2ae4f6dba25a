"""Any method's stages with the tokens that serve as coordinates kept first."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from swiftvlm.amounts import Budget, Number
from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset
from swiftvlm.plans import Plan
from swiftvlm.scores import Coordinates
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Reduction, Stage


@dataclass(frozen=True)
class Coordinated(Method):
    """Another method whose every stage keeps coordinate tokens first, as IVC-Prune (arXiv:2602.03060) adds to others.

        swiftvlm.prune(model, Coordinated(FastV(), share=0.1), budget=192)

    Counts, budgets, positions and what becomes of the rest are the other method's; of what it keeps, `share` of the
    visual tokens are coordinates. The paper adds about a tenth to FastV and PyramidDrop.
    """

    name: ClassVar[str] = "coordinated"
    paper: ClassVar[str] = "arXiv:2602.03060"

    method: Method
    share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.method, Method):
            raise MethodError(f"Coordinated takes an instance of a method, such as FastV(), got {self.method!r}")
        if not 0.0 < self.share < 1.0:
            raise MethodError(f"share is a share of the visual tokens in (0, 1), got {self.share}")

    @property
    def reduction(self) -> Reduction | None:
        """The other method's: before the language model tokens have no positions yet."""
        return self.method.reduction

    def settings(self) -> Mapping[str, Preset]:
        """The other method's."""
        return self.method.settings()

    def missing(self) -> str:
        """The other method's."""
        return self.method.missing()

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """The other method's. Raises `MethodError` where it has none inside the language model."""
        stages = self.method.stages(shape)
        if not stages:
            raise MethodError(f"{self.method.name} has no stage inside the language model that could keep coordinates")
        return tuple(replace(stage, score=Coordinates(stage.score, self.share)) for stage in stages)

    def plan(
        self, shape: ModelShape, visual: int, text: Number, budget: Budget = None, preset: str | None = None
    ) -> Plan:
        """The other method's."""
        return self.method.plan(shape, visual, text, budget, preset)
