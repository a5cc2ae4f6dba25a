"""FEATHER: attention without RoPE, and a grid that keeps the whole image covered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset, at_depth
from swiftvlm.scores import Covered, TextAttention
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Score, Stage

AFTER = (8, 16)


@dataclass(frozen=True)
class Feather(Method):
    """FEATHER (Endo et al., ICCV 2025, arXiv:2412.13180): two cuts scored without RoPE; the first keeps a grid.

    Follows `llama2_models.py`: the score is the last prompt token's attention with the norm, query and key of the layer
    just run, without RoPE and with a softmax over the visual keys alone; original positions. RoPE makes a query favour
    what stands near it, the bottom of the image, and the grid keeps the rest from vanishing.

    - `after`: layers run before the two cuts; None: 8 and 16 of 32 as fractions of the depth.
    - `stride`: the first cut keeps every `stride`-th row and column of each tile before anything else.
    - `counts`: tokens kept at each cut. The official code keeps the *union* of grid and best tokens, whose size differs
      from image to image; here the best tokens beside the grid fill the count, so that a budget is met exactly.

    No setting for LLaVA-1.5 is published; `192` is ours (its ratio 0.22 gives about 176 and 8 tokens).
    """

    name: ClassVar[str] = "feather"
    summary: ClassVar[str] = "two cuts without RoPE; the first keeps a grid"
    paper: ClassVar[str] = "arXiv:2412.13180"
    source: ClassVar[str] = "official code; the grid within a fixed count"
    presets: ClassVar[Mapping[str, Preset]] = {"192": Preset(AFTER, ((176, 0), (8, 0)))}

    after: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None
    stride: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise MethodError(f"stride is a step over rows and columns of at least 1, got {self.stride}")

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """The grid is kept by the first cut only."""
        score = TextAttention("previous", "visual", rope=False)
        depths = self.after or at_depth(AFTER, shape.layers)
        scores: list[Score] = [Covered(score, self.stride), *[score] * (len(depths) - 1)]
        return tuple(Stage(after, one) for after, one in zip(depths, scores, strict=True))
