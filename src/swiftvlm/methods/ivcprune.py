"""IVC-Prune: tokens whose positions serve as coordinates, and a foreground found by values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset, at_depth
from swiftvlm.ratings.values import Foreground
from swiftvlm.scores import Coordinates
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage


@dataclass(frozen=True)
class IVCPrune(Method):
    """IVC-Prune (ICLR 2026, arXiv:2602.03060): coordinate tokens of RoPE, and what the values call foreground.

    Follows the official code: behind layer 16 of 32, `coordinates` of the visual tokens stay for their positions alone
    (half by mean cosine, half by mean sine), `seeds` are those whose values are most like the text's, and the
    foreground is most like seeds and text (no mask, no RoPE). Original positions. The cache of the layers before is cut
    to the same tokens, so that the whole of it is smaller while decoding; the prefill of those layers is full.

    - `after`: layers run before the cut; None: 16 of 32 as a fraction of the depth.
    - `counts`: tokens kept. The official code keeps the union of four sets, whose size differs from image to image
      (about 161 of 576); here the foreground fills the count, so that a budget is met exactly.
    """

    name: ClassVar[str] = "ivcprune"
    summary: ClassVar[str] = "coordinate tokens of RoPE, and a foreground by values"
    paper: ClassVar[str] = "arXiv:2602.03060"
    source: ClassVar[str] = "official code; the foreground fills a fixed count"
    # 115 foreground tokens, 6 seeds and twice 29 coordinates of 576, less what is in several sets. A share of the
    # cache while decoding: the prefill's layer average is (16 * 576 + 16 * 161) / 32 = 368.5.
    presets: ClassVar[Mapping[str, Preset]] = {"28%": Preset((16,), ((161, 0),))}

    after: int | None = None
    counts: tuple[int, ...] | None = None
    # Official for LLaVA: round(.05 N) by cosine and as many by sine, round(.01 N) seeds.
    coordinates: float = 0.1
    seeds: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("coordinates", "seeds"):
            if not 0.0 <= self.__dict__[name] < 1.0:
                raise MethodError(f"{name} is a share of the visual tokens in [0, 1), got {self.__dict__[name]}")

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage that drops, in earlier layers' caches too."""
        # Not `or`: after=0 is to be refused, not taken for None.
        after = self.after if self.after is not None else at_depth((16,), shape.layers)[0]
        return (Stage(after, Coordinates(Foreground(self.seeds), self.coordinates), trims=True),)
