"""The model as it is, on the same footing as every method."""

from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.methods.base import Method
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage


@dataclass(frozen=True)
class Vanilla(Method):
    """No pruning. It has a trace like any method, and refuses a budget that it would have to exceed."""

    name: ClassVar[str] = "vanilla"
    summary: ClassVar[str] = "the model as it is"

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """None."""
        return ()
