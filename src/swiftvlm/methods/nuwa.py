"""Nuwa: patches from every corner of the image, some gathering their surroundings, and one cut inside the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.methods.base import Preset
from swiftvlm.methods.tiles import TiledThenCut
from swiftvlm.reductions.nuwa import Regions
from swiftvlm.scores import TextAttention
from swiftvlm.stage import Positions, Reduction


@dataclass(frozen=True)
class Nuwa(TiledThenCut):
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
    # The mean of both counts is the budget (to a token for LLaVA-NeXT, which keeps a tenth inside, not a seventh).
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset((0, 16), ((336, 0), (48, 0))),
        "128": Preset((0, 16), ((224, 0), (32, 0))),
        "64": Preset((0, 16), ((112, 0), (16, 0))),
        "next-640": Preset((0, 16), ((1162, 0), (116, 0)), visual=2880),
        "next-320": Preset((0, 16), ((582, 0), (58, 0)), visual=2880),
        "next-160": Preset((0, 16), ((290, 0), (29, 0)), visual=2880),
    }
    parts: ClassVar[tuple[int, int]] = (336, 48)
    # As the official code, which is FastV's; the paper's main text has the cosine with the mean text embedding.
    score: ClassVar[TextAttention] = TextAttention("previous")

    positions: Positions = "original"

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Regions(self.positions)
