"""VisionZip: what the vision tower's [CLS] looks at, and the rest merged, before the language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Preset
from swiftvlm.methods.tiles import Tiled
from swiftvlm.reductions.visionzip import VisionZipReduction
from swiftvlm.stage import Reduction


@dataclass(frozen=True)
class VisionZip(Tiled):
    """VisionZip (Yang et al., CVPR 2025, arXiv:2412.04467): merged before the projector, the model itself untouched.

    Follows the official code: patches with the largest [CLS] attention (sum over heads of the layer that made the
    features) and [CLS] itself are kept; of the rest, evenly spaced targets gather those of most similar keys. Fed as
    [CLS], kept, merged, numbered afresh; `positions="original"` leaves every token the number of the slot it is fed in.
    `counts` = (dominant with [CLS], contextual).
    """

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = "before the model: what [CLS] looks at, the rest merged"
    paper: ClassVar[str] = "arXiv:2412.04467"
    source: ClassVar[str] = "official code"
    # 54 + 10 is in the official README, the other two in a third party's configuration (LightCompress).
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset((0,), ((162, 30),)),
        "128": Preset((0,), ((108, 20),)),
        "64": Preset((0,), ((54, 10),)),
    }

    # The same share in all three presets.
    merged_share: float = 10 / 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.merged_share < 1.0:
            raise MethodError(f"merged_share is the contextual share of the tokens, in [0, 1), got {self.merged_share}")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return VisionZipReduction(self.positions)
