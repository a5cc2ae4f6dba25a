"""FastV, and two baselines that run FastV's plan with another score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset
from swiftvlm.scores import Random, TextAttention, Uniform
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Score, Stage

# What a layer average B leaves behind two whole layers of 32: (32 B - 2 * 576) / 30, rounded down. That budgets
# are averages, not counts behind the cut, is SparseVLMs' issue 12.
PRESETS = {
    "192": Preset((2,), ((166, 0),)),
    "128": Preset((2,), ((98, 0),)),
    "64": Preset((2,), ((29, 0),)),
}


@dataclass(frozen=True)
class FastV(Method):
    """FastV (Chen et al., ECCV 2024, arXiv:2403.06764): one early cut by the attention of the last token.

    `after` is the paper's K: layers that see every visual token. Where paper and code differ we follow the code: the
    last token's row, not the mean of all rows (FastV issue 14). Original positions, each row its own choice.
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "one early cut by the last token's attention"
    paper: ClassVar[str] = "arXiv:2403.06764"
    source: ClassVar[str] = "official code"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    after: int = 2
    counts: tuple[int, ...] | None = None

    def score(self) -> Score:
        """What ranks the visual tokens."""
        return TextAttention("previous")

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage that drops."""
        return (Stage(after=self.after, score=self.score()),)


@dataclass(frozen=True)
class RandomTokens(FastV):
    """FastV's plan with random tokens: the floor any score must beat. Seeded per prompt, not per batch."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "FastV's plan, random tokens"
    paper: ClassVar[str] = ""
    source: ClassVar[str] = "baseline"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**63:
            raise MethodError(f"seed is an int from 0 to 2 ** 63 - 1, got {self.seed}")

    def score(self) -> Score:
        """Random numbers."""
        return Random(self.seed)


@dataclass(frozen=True)
class UniformTokens(FastV):
    """FastV's plan with evenly spaced tokens in raster order: coverage without looking."""

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "FastV's plan, evenly spaced tokens"
    paper: ClassVar[str] = ""
    source: ClassVar[str] = "baseline"

    def score(self) -> Score:
        """Even spacing."""
        return Uniform()
