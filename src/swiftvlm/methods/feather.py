"""FEATHER: attention without RoPE, and a grid that keeps the whole image covered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.budget import Slot, furthest
from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset, at_depth
from swiftvlm.plans import Cut
from swiftvlm.scores import Covered, TextAttention
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Score, Stage

# The official `fastv_k`: indexes from 0 of the first layers to see fewer tokens, so also how many ran before.
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

    Of a ratio r of the tokens beside the grid, r ** 2 of what is left stay at every later cut; a budget keeps to that
    and solves for r. Preset "default" is the official r = .3. None is published for LLaVA-1.5's tables; "192" is ours.
    """

    name: ClassVar[str] = "feather"
    summary: ClassVar[str] = "two cuts without RoPE; the first keeps a grid"
    paper: ClassVar[str] = "arXiv:2412.13180"
    source: ClassVar[str] = "official code; the grid within a fixed count"
    # Expected unions of grid and best tokens, 64 + r * 512 of 576, then r ** 2 of that: r = .22 and .3.
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset(AFTER, ((176, 0), (8, 0))),
        "default": Preset(AFTER, ((217, 0), (19, 0))),
    }

    after: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None
    stride: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise MethodError(f"stride is a step over rows and columns of at least 1, got {self.stride}")

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """The grid is kept by the first cut only."""
        # "previous": officially layers[K - 1] is asked on its own input, just before it runs.
        score = TextAttention("previous", "visual", rope=False)
        depths = self.after or at_depth(AFTER, shape.layers)
        scores: list[Score] = [Covered(score, self.stride), *[score] * (len(depths) - 1)]
        return tuple(Stage(after, one) for after, one in zip(depths, scores, strict=True))

    def _solve(self, slots: Sequence[Slot], layers: int, visual: int, average: float) -> tuple[Cut, ...]:
        # No other count belongs to a ratio whatever the picture shows: best tokens may stand on the grid.
        grid = visual / self.stride**2

        def cuts(first: int) -> tuple[Cut, ...]:
            # Best tokens fall on the grid as often as anywhere: the union has grid + ratio * (visual - grid) tokens.
            # With a stride of 1 all tokens are on the grid, and the quotient would be 0 / 0.
            ratio = max((first - grid) / (visual - grid), 0.0) if self.stride > 1 else first / visual
            counts = [first]
            for _ in slots[1:]:
                counts.append(max(int(counts[-1] * ratio**2 + 1e-9), 1))
            return tuple(Cut(slot.after, count) for slot, count in zip(slots, counts, strict=True))

        return furthest(range(1, visual + 1), cuts, slots, layers, visual, average)
