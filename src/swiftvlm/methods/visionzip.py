"""VisionZip: what the vision tower's [CLS] looks at, and the rest merged, before the language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from swiftvlm.methods.base import Method, Preset
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Positions, Reduction, Stage
from swiftvlm.tower import Reduced, Seen, nearest, others, top, unit


@dataclass(frozen=True)
class VisionZipReduction:
    """Dominant and contextual tokens of one tile."""

    positions: Positions
    ordered: bool = False

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """[CLS], the dominant patches in raster order, then the contextual tokens by ascending target."""
        dominant = top(seen.from_cls(seen.last).sum(0), kept - 1).sort().values
        rest = others(dominant, len(seen.patch))
        step = max(1, len(rest) // merged) if merged else 1
        targets = rest[::step][:merged]
        members = rest[~torch.isin(rest, targets)]
        metric = unit(seen.patches(seen.keys(seen.last).mean(0)))
        features, groups = seen.features.float(), torch.full_like(seen.patch, -1)
        groups[targets] = torch.arange(len(targets), device=groups.device)
        gathered = torch.zeros_like(features[targets])
        if len(members) and len(targets):
            groups[members] = nearest(metric, members, targets)
            belongs = torch.nn.functional.one_hot(groups[members], len(targets)).float()
            gathered = (belongs.T @ features[members]) / belongs.sum(0).clamp(min=1)[:, None]
        # The target plus its members' mean: a sum, as in the official code, about twice as long as a patch.
        states = torch.cat([features[dominant], features[targets] + gathered])
        cls = seen.states(seen.depth)[:1].float() if kept else states[:0]
        none = torch.full((len(cls),), -1, device=groups.device)
        return Reduced(
            seen.project(torch.cat([cls, states])), torch.cat([none, dominant, targets]), len(targets), groups
        )


@dataclass(frozen=True)
class VisionZip(Method):
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
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset((0,), ((162, 30),)),
        "128": Preset((0,), ((108, 20),)),
        "64": Preset((0,), ((54, 10),)),
    }

    counts: tuple[int, ...] | None = None
    merged_share: float = 10 / 64
    positions: Positions = "renumbered"

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return VisionZipReduction(self.positions)

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """None inside the model."""
        return ()
