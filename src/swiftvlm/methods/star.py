"""STAR: the most looked-at patches before the language model, the most asked-for ones inside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.methods.base import Preset
from swiftvlm.methods.tiles import TiledThenCut
from swiftvlm.ratings.raters import AllText
from swiftvlm.reductions.star import Received
from swiftvlm.stage import Positions, Reduction, Score


@dataclass(frozen=True)
class Star(TiledThenCut):
    """STAR (arXiv:2505.12359), reconstructed: two stages, by attention among patches and then from the text.

    Only summaries were found, whose formulas give every token the same score as printed (the mean of a softmax row);
    read as attention *received*. First, from all of the tower's tokens in the layer that made the features (mean over
    heads); then, behind layer 16 of 32, from all text behind the image. Both depths, the three to one between the
    stages, and the true positions are ours.

    - `after`: layers run before the cut inside, one number; None: 16 of 32 as a fraction of the depth.
    - `counts`: tokens before it, and behind it.
    """

    name: ClassVar[str] = "star"
    summary: ClassVar[str] = "before the model: what patches look at; one cut inside by the text"
    paper: ClassVar[str] = "arXiv:2505.12359"
    source: ClassVar[str] = "reconstruction from summaries"
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset((0, 16), ((288, 0), (96, 0))),
        "128": Preset((0, 16), ((192, 0), (64, 0))),
        "64": Preset((0, 16), ((96, 0), (32, 0))),
    }
    parts: ClassVar[tuple[int, int]] = (288, 96)
    score: ClassVar[Score] = AllText("previous")

    positions: Positions = "original"

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Received(self.positions)
