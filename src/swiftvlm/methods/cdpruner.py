"""CDPruner: different patches that the question is about, as a second tower sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from swiftvlm.methods.tiles import Tiled
from swiftvlm.reductions.cdpruner import Determinantal
from swiftvlm.stage import Reduction


@dataclass(frozen=True)
class CDPruner(Tiled):
    """CDPruner (NeurIPS 2025, arXiv:2506.10967): a determinantal point process, conditioned on the question.

    Follows the official code: the kernel is the cosine of projected patches times both relevances, which are stretched
    to 0..1 (over each tile; officially over a whole batch, so that a row's answer would depend on its neighbours); the
    greedy most probable set stays, in raster order, numbered afresh.

    `relevance` takes a `swiftvlm.tower.Seen` and returns one number a patch. The paper's comes from the CLIP text tower
    that VLMs do not carry: `swiftvlm.relevance.ClipRelevance` computes it from a `CLIPModel`.
    """

    name: ClassVar[str] = "cdpruner"
    summary: ClassVar[str] = "before the model: different patches the question is about (needs a text tower)"
    paper: ClassVar[str] = "arXiv:2506.10967"
    source: ClassVar[str] = "official code; relevances stretched tile by tile"

    relevance: Callable[[Any], Any] | None = None

    def missing(self) -> str:
        """A relevance, unless there is one."""
        if self.relevance is not None:
            return ""
        return (
            f"{self.name} weighs patches by the question, which takes a CLIP text tower: pass "
            "CDPruner(relevance=ClipRelevance(clip_model, clip_tokenizer, tokenizer)) with "
            "`from swiftvlm.relevance import ClipRelevance`, or a function of your own; 'divprune' needs none"
        )

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Determinantal(self.relevance, self.positions)
