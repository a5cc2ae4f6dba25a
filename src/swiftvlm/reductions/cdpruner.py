"""A determinantal point process of patches that differ, and that the text is about."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swiftvlm.errors import MethodError
from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, chosen, cosines, first_max

# Leaves the least relevant patch a little weight: at 0 its whole row of the kernel would be 0.
FLOOR = 1e-6


@dataclass(frozen=True)
class Determinantal:
    """The most probable set of a tile's patches, greedily."""

    relevance: Callable[[Seen], Tensor] | None
    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Raster order. Raises `MethodError` for relevances of another shape."""
        if self.relevance is None:
            raise MethodError("cdpruner has no relevance to weigh patches with")
        given = torch.as_tensor(self.relevance(seen)).float().to(seen.embeds.device)
        if not bool(given.isfinite().all()):
            raise MethodError("a relevance is finite, got NaN or infinity")
        if given.shape != seen.patch.shape:
            raise MethodError(f"a relevance is one number a patch, ({len(seen.patch)},), got {tuple(given.shape)}")
        spread = given.max() - given.min()
        weight = (given - given.min() + FLOOR) / spread if bool(spread > 0) else torch.ones_like(given)
        return chosen(seen, probable(weight[:, None] * cosines(seen.embeds) * weight, kept))


def probable(kernel: Float[Tensor, "m m"], count: int) -> Int[Tensor, " k"]:
    """Indexes that raise log det most, one after the other (Chen et al., NeurIPS 2018, algorithm 1)."""
    # `left`: by how much each patch would multiply the determinant.
    left, rows, picks = kernel.diagonal().clone(), list[Tensor](), list[int]()
    for _ in range(min(count, len(kernel))):
        pick = first_max(left)
        row = kernel[pick].clone()
        if rows:
            # (picks, m): the rows of the Cholesky factor so far.
            earlier = torch.stack(rows)
            row -= earlier[:, pick] @ earlier
        # A duplicate has nothing left: rounding must not turn its root into a NaN.
        row = row / left[pick].clamp(min=1e-12).sqrt()
        left = left - row**2
        rows.append(row)
        picks.append(pick)
        left[picks] = -torch.inf
    return torch.tensor(picks, dtype=torch.long, device=kernel.device)
