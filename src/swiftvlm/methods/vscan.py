"""VScan: windows and the whole image before the language model, one more cut inside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.methods.base import Preset
from swiftvlm.methods.tiles import TiledThenCut
from swiftvlm.reductions.vscan import Scan
from swiftvlm.scores import TextAttention
from swiftvlm.stage import Reduction


@dataclass(frozen=True)
class VScan(TiledThenCut):
    """VScan (NeurIPS 2025, arXiv:2505.22654): a local and a global scan of the tower, then one cut inside the model.

    Follows the official code, as far as read: of the T tokens that enter the model, int(T / 2) // 16 come from each of
    4 x 4 windows by the tower's sixth layer of 24, the others by the layer that made the features (both [CLS]
    attention, mean over heads; no token is lost where T / 2 is no multiple of 16); all are averages. After layer 16 of
    32 a third of them stays, ranked as in PyramidDrop. Numbered afresh both times.

    - `after`: layers run before the cut inside, one number; None: 16 of 32 as a fraction of the depth.
    - `counts`: tokens before it, and behind it.
    """

    name: ClassVar[str] = "vscan"
    summary: ClassVar[str] = "before the model: windows and the whole image; one cut inside"
    paper: ClassVar[str] = "arXiv:2505.22654"
    source: ClassVar[str] = "official code, read in part"
    # The only setting that was found; a budget keeps its proportion.
    presets: ClassVar[Mapping[str, Preset]] = {"64": Preset((0, 16), ((96, 0), (32, 0)))}
    parts: ClassVar[tuple[int, int]] = (96, 32)
    score: ClassVar[TextAttention] = TextAttention("next")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Scan(self.positions)
