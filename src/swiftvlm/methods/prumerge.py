"""LLaVA-PruMerge and PruMerge+: patches that stand out, each enriched by its like, before the language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.methods.base import Preset
from swiftvlm.methods.tiles import Tiled
from swiftvlm.reductions.prumerge import Outstanding
from swiftvlm.stage import Reduction

# No bound but what is there: the image decides.
ADAPTIVE: Mapping[str, Preset] = {"adaptive": Preset((0,), ((576, 0),))}


@dataclass(frozen=True)
class PruMerge(Tiled):
    """LLaVA-PruMerge (Shang et al., ICCV 2025, arXiv:2403.15388): what [CLS] looks at, enriched, and the rest in one.

    Follows the official code: attention with the tower's last keys and [CLS]'s query, all heads as one; every kept
    patch gains the attention-weighted sum of the 32 patches of most similar keys; one more token is that of all
    dropped ones. Fed in order of attention, numbered afresh, which loses where things are.

    - `counts`: tokens, the last one included.
    - `adaptive`: only patches whose attention is an outlier (above Q3 + 1.5 IQR) are kept, each image its own number,
      never more than the plan's. The official code pools a batch for that; here every tile decides for itself. Without
      counts or a budget, as officially, nothing else bounds them (preset "adaptive").
    """

    name: ClassVar[str] = "prumerge"
    summary: ClassVar[str] = "before the model: what stands out, enriched by its like"
    paper: ClassVar[str] = "arXiv:2403.15388"
    source: ClassVar[str] = "official code; each tile by itself"

    adaptive: bool = False

    def settings(self) -> Mapping[str, Preset]:
        """The published ratios are averages over images: only what adapts to the image has a setting of its own."""
        return ADAPTIVE if self.adaptive else self.presets

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Outstanding(plus=False, adaptive=self.adaptive, positions=self.positions)


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """LLaVA-PruMerge+: as PruMerge, with a grid of patches beside the outstanding ones.

    The grid's step follows from how many outstanding patches there are, a third of their mean distance; as many of
    them are taken as leave room for it within the count, and the next best where the grid leaves some. `adaptive`: the
    outliers and their grid, whatever it adds, as long as the plan has room.
    """

    name: ClassVar[str] = "prumerge+"
    summary: ClassVar[str] = "before the model: PruMerge with a grid beside it"
    source: ClassVar[str] = "official code; filled up to its count"

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Outstanding(plus=True, adaptive=self.adaptive, positions=self.positions)
