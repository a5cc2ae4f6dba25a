"""Dominant and contextual tokens: what [CLS] looks at, the rest merged."""

from dataclasses import dataclass

import torch

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, nearest, others, top, unit


@dataclass(frozen=True)
class VisionZipReduction:
    """Dominant and contextual tokens of one tile."""

    positions: Positions
    ordered: bool = False

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """[CLS], the dominant patches in raster order, then the contextual tokens by ascending target."""
        # [CLS] is one of the dominant tokens.
        dominant = top(seen.from_cls(seen.last).sum(0), kept - 1).sort().values
        rest = others(dominant, len(seen.patch))
        # Rounded down: the last stretch of the image may have no target.
        step = max(1, len(rest) // merged) if merged else 1
        targets = rest[::step][:merged]
        members = rest[~torch.isin(rest, targets)]
        metric = unit(seen.patches(seen.keys(seen.last).mean(0)))
        features, groups = seen.features.float(), torch.full_like(seen.patch, -1)
        groups[targets] = torch.arange(len(targets), device=groups.device)
        gathered = torch.zeros_like(features[targets])
        if len(members) and len(targets):
            groups[members] = nearest(metric, members, targets)
            # (members, targets). A matmul, not index_add: the order of its sums is fixed.
            belongs = torch.nn.functional.one_hot(groups[members], len(targets)).float()
            gathered = (belongs.T @ features[members]) / belongs.sum(0).clamp(min=1)[:, None]
        # The target plus its members' mean: a sum, as in the official code, about twice as long as a patch.
        states = torch.cat([features[dominant], features[targets] + gathered])
        # A small budget's share of one of many tiles may be 0, and [CLS] counts in it.
        cls = seen.states(seen.depth)[:1].float() if kept else states[:0]
        none = torch.full((len(cls),), -1, device=groups.device)
        return Reduced(
            seen.project(torch.cat([cls, states])), torch.cat([none, dominant, targets]), len(targets), groups
        )
