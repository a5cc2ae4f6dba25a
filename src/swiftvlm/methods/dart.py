"""DART: keep what is least like a few pivots, without looking at attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset
from swiftvlm.ratings.dart import Dissimilar
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage


@dataclass(frozen=True)
class Dart(Method):
    """DART (Wen et al., EMNLP 2025, arXiv:2502.11494): duplication matters more than importance.

    Behind layer `after`, the `pivots` visual and as many text tokens with the largest keys (L1, behind RoPE) each add
    the visual tokens that are least like them (cosine of the states behind the model's last norm). Original positions.

    Pivots take their turns as a Python set of their positions yields them, as in the official code. That one rounds
    down to as many tokens for every pivot; here the first pivots add the rest, so that a budget is met exactly. Preset
    "128" keeps 132 behind layer 2, which is 159.75 on average: its authors count what is kept.
    """

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = "what is least like a few pivots"
    paper: ClassVar[str] = "arXiv:2502.11494"
    source: ClassVar[str] = "official code; counts to the last token"
    # 4 visual pivots themselves, and 128 // 8 tokens for each of the 8 pivots, 4 of them text.
    presets: ClassVar[Mapping[str, Preset]] = {"128": Preset((2,), ((132, 0),))}

    after: int = 2
    counts: tuple[int, ...] | None = None
    pivots: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivots < 1:
            raise MethodError(f"pivots is a number of visual tokens, at least 1, got {self.pivots}")

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage that drops."""
        return (Stage(self.after, Dissimilar(self.pivots)),)
