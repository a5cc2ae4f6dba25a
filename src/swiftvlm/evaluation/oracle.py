"""What pruning could reach: only the patches that show something are kept, told by the scene instead of a score."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from swiftvlm.evaluation.tasks import Sample
from swiftvlm.methods.fastv import FastV
from swiftvlm.scores import View
from swiftvlm.stage import Score


@dataclass(frozen=True)
class Told:
    """Ratings that were known before: 1 for the visual tokens at these places in the row, 0 for all others."""

    places: tuple[int, ...]
    probe: None = None

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """1 for the told tokens of every row."""
        scores = torch.zeros(view.slot.shape, device=view.slot.device)
        for row in range(len(scores)):
            visual = view.candidates[row].nonzero()[:, 0]
            scores[row, visual[list(self.places)]] = 1.0
        return scores


@dataclass(frozen=True)
class Oracle(FastV):
    """From behind layer `after` on, only the told places remain. One picture, so one row, at a time."""

    name: ClassVar[str] = "oracle"
    summary: ClassVar[str] = "only the patches that truly show something"
    paper: ClassVar[str] = ""

    places: tuple[int, ...] = ()

    def score(self) -> Score:
        """The told places."""
        return Told(self.places)


def oracle(sample: Sample, after: int = 2) -> Oracle:
    """The oracle of one sample's picture: layers 1 to `after` see every token, the others what is shown."""
    return Oracle(after=after, counts=(len(sample.shown),), places=sample.shown)
