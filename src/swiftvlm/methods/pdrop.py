"""PyramidDrop: several cuts, each a fixed fraction of the one before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.methods.base import Method, Preset, at_depth
from swiftvlm.scores import TextAttention
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Stage

# The official `layer_list`: layers run before each cut.
AFTER = (8, 16, 24)


@dataclass(frozen=True)
class PDrop(Method):
    """PyramidDrop (Xing et al., CVPR 2025, arXiv:2410.17247): cut after 8, 16 and 24 of 32 layers, geometrically.

    Follows `modeling_llama_pdrop.py`: each cut is scored by the layer about to run (its norm, query, key and RoPE) from
    the last prompt token's row, softmax over all keys, and survivors are numbered afresh from 0. That renumbering, not
    the selection, is what loses boxes: `positions="original"` is the first row of SwiftVLM's Table 3.

    - `after`: layers run before each cut (the official `layer_list`); None: 8, 16, 24 as fractions of the depth.
    - `counts`: tokens kept at each cut.

    The official default keeps a half each time, 270 of 576 tokens on average. A budget keeps the geometric structure
    and solves for the ratio, as its authors advise; 8, 16, 24 cannot go below 144 (a quarter). Their example for 64 is
    `PDrop(after=(2, 8, 16), counts=(109, 20, 3))`, 62.9 on average.
    """

    name: ClassVar[str] = "pdrop"
    summary: ClassVar[str] = "three geometric cuts, positions renumbered"
    paper: ClassVar[str] = "arXiv:2410.17247"
    source: ClassVar[str] = "official code"
    # Ratios 1/2 (official) and 1/4, at which the FLOPs are the 1.72 T that SwiftVLM's Table 1 prints for "192".
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(AFTER, ((288, 0), (144, 0), (72, 0))),
        "192": Preset(AFTER, ((144, 0), (36, 0), (9, 0))),
    }

    after: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None
    positions: Positions = "renumbered"

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage a cut; all drop."""
        depths = self.after or at_depth(AFTER, shape.layers)
        return tuple(Stage(after, TextAttention("next"), positions=self.positions) for after in depths)
