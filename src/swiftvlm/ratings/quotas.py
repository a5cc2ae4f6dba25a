"""ViTCoP's choices inside the model: tokens of small keys, in each cluster its share."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from swiftvlm.budget import shares
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
            # One of each cluster is what the others become.
            due = shares(keep, (torch.bincount(labels[row][clustered]) - 1).tolist())
            for label, count in enumerate(due):
                own = clustered[labels[row][clustered] == label]
                best = small[row][own].sort(descending=True, stable=True).indices[:count]
                scores[row, own[best]] = 1.0
        return scores
