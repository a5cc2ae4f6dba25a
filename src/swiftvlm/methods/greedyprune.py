"""GreedyPrune: what is like the question, but not like what was taken before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset
from swiftvlm.ratings.greedy import Greedy
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage


@dataclass(frozen=True)
class GreedyPrune(Method):
    """GreedyPrune (arXiv:2506.13166), reconstructed: salient tokens, none like another by more than `alike`.

    The abstract, a second-hand problem statement and a third-party version were read; layer, threshold and the meaning
    of saliency are not in them. Here: behind layer `after`, cosine with the last prompt token's state; likeness is the
    cosine of states less their mean over the image (without that, nearly all are alike). What the threshold leaves
    open is filled up by saliency. Original positions. Presets are FastV's averages.
    """

    name: ClassVar[str] = "greedyprune"
    summary: ClassVar[str] = "like the question, unlike each other"
    paper: ClassVar[str] = "arXiv:2506.13166"
    source: ClassVar[str] = "reconstruction from the abstract and other people's code"
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset((2,), ((166, 0),)),
        "128": Preset((2,), ((98, 0),)),
        "64": Preset((2,), ((29, 0),)),
    }

    after: int = 2
    counts: tuple[int, ...] | None = None
    # The third-party version's; the paper's threshold was not found.
    alike: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1.0 <= self.alike <= 1.0:
            raise MethodError(f"alike is a cosine in [-1, 1], got {self.alike}")

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage that drops."""
        return (Stage(self.after, Greedy(self.alike)),)
