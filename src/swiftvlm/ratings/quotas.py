"""ViTCoP's choices inside the model: tokens of small keys, in each cluster its share."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from swiftvlm.scores import View


@dataclass(frozen=True)
class SmallKeys:
    """The smaller a token's key (mean over heads, L2), the better; attention is not looked at."""

    probe: Literal["previous"] = "previous"

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """Minus the norm."""
        # RoPE turns all heads of a token alike: the length of their mean is that of the unturned keys.
        size: Tensor = view.keys().float().mean(1).norm(dim=-1)
        return -size


@dataclass(frozen=True)
class Quotas:
    """Of every cluster its share of the count, the smallest keys; tokens in no cluster come behind."""

    probe: Literal["previous"] = "previous"

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """1 for what the clusters keep, 0 for all others, between them for tokens in no cluster."""
        small, labels = SmallKeys().rate(view), view.labels()
        scores = torch.where(labels < 0, 0.5, 0.0)
        for row, keep in enumerate(view.keep):
            clustered = (view.open[row] & (labels[row] >= 0)).nonzero()[:, 0]
            # One of each cluster is what the others become.
            room = (torch.bincount(labels[row][clustered]) - 1).clamp(min=0)
            # (labels, clustered). A matmul, not weighted counts: atomics would sum in another order on every run.
            named = torch.arange(len(room), device=labels.device)[:, None] == labels[row][clustered]
            sizes = named.double() @ -small[row][clustered].double()
            for label, count in enumerate(quotas(keep, room.tolist(), sizes.tolist())):
                own = clustered[labels[row][clustered] == label]
                best = small[row][own].sort(descending=True, stable=True).indices[:count]
                scores[row, own[best]] = 1.0
        return scores


def quotas(keep: int, room: Sequence[int], sizes: Sequence[float]) -> list[int]:
    """What each cluster keeps, no more than it has room for: in proportion to that, rounded to even.

    What is missing goes to the clusters of the smallest sums of norms (`sizes`), one each; what is too much is taken
    from those of the largest.
    """
    total = sum(room)
    # More than there is room for could not be mended below.
    keep = min(keep, total)
    found = [round(Fraction(keep * own, max(total, 1))) for own in room]
    missing = keep - sum(found)
    step = 1 if missing > 0 else -1
    # Smallest sums first where tokens are missing, largest first where there are too many; ties: the lower label.
    ranked = sorted(range(len(room)), key=lambda cluster: (step * sizes[cluster], cluster))
    while missing:
        for cluster in ranked:
            if missing and 0 <= found[cluster] + step <= room[cluster]:
                found[cluster], missing = found[cluster] + step, missing - step
    return found
