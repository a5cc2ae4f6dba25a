"""DivPrune: patches as far apart as possible, before the language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.methods.base import Preset
from swiftvlm.methods.tiles import Tiled
from swiftvlm.reductions.divprune import Farthest
from swiftvlm.stage import Reduction


@dataclass(frozen=True)
class DivPrune(Tiled):
    """DivPrune (Alvar et al., CVPR 2025, arXiv:2503.02175): patches as far apart as possible, attention not looked at.

    Follows the official code: max-min distance (1 - cosine) on the projected features; numbered afresh.
    """

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "before the model: patches as unlike each other as possible"
    paper: ClassVar[str] = "arXiv:2503.02175"
    source: ClassVar[str] = "official code"
    # Its own ratio for LLaVA-1.5, .098 of 576.
    presets: ClassVar[Mapping[str, Preset]] = {"56": Preset((0,), ((56, 0),))}

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Farthest(self.positions)
