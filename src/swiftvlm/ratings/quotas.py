"""ViTCoP's choices inside the model: tokens of small keys, in each cluster its share."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swiftvlm.scores import View


@dataclass(frozen=True)
class SmallKeys:
    """The smaller a token's key (mean over heads, L2), the better; attention is not looked at."""

    probe: Literal["previous"] = "previous"

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """Minus the norm."""
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
            clustered = (view.candidates[row] & (labels[row] >= 0)).nonzero()[:, 0]
            due = quotas(torch.bincount(labels[row][clustered]), keep)
            for label, count in enumerate(due):
                own = clustered[labels[row][clustered] == label]
                best = small[row][own].sort(descending=True, stable=True).indices[:count]
                scores[row, own[best]] = 1.0
        return scores


def quotas(sizes: Int[Tensor, " clusters"], count: int) -> list[int]:
    """A count shared in proportion to sizes - 1: rounded down, then the largest remainders, ties to the first."""
    spare = [size - 1 for size in sizes.tolist()]
    total = max(sum(spare), 1)
    count = min(count, sum(spare))
    found = [count * size // total for size in spare]
    behind = sorted(range(len(spare)), key=lambda label: (-(count * spare[label] % total), label))
    for label in behind[: count - sum(found)]:
        found[label] += 1
    return found
