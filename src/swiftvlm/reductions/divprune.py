"""Max-min diversity."""

from dataclasses import dataclass

import torch

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, chosen, cosines, first_max


@dataclass(frozen=True)
class Farthest:
    """Max-min diversity of the projected patches."""

    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Farthest-point sampling by 1 - cosine, from the patch farthest from its nearest neighbour."""
        apart = 1 - cosines(seen.embeds)
        own = torch.arange(len(apart), device=apart.device)
        gap = apart.clone()
        # Or everyone's nearest neighbour would be itself.
        gap[own, own] = torch.inf
        near, picks = gap.amin(1), list[int]()
        for _ in range(min(kept, len(apart))):
            pick = first_max(near)
            # From the first pick on only distances to picks count. Cloned: below, a row of `apart` would be written to.
            near = torch.minimum(near, apart[pick]) if picks else apart[pick].clone()
            picks.append(pick)
            near[picks] = -torch.inf
        return chosen(seen, torch.tensor(picks, dtype=torch.long, device=apart.device))
