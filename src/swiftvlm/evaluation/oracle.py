"""Tokens told from outside instead of by a score: the patches that truly show something, or another layer's choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from swiftvlm.amounts import Budget, Number
from swiftvlm.evaluation.tasks import Sample
from swiftvlm.methods import Method
from swiftvlm.plans import Cut, Plan
from swiftvlm.scores import View
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage

ORACLE = "oracle"  # its name among the methods of an evaluation
Places = tuple[tuple[int, ...], ...]  # of every row of a batch: indexes among its visual tokens


@dataclass(frozen=True)
class Told:
    """Ratings that were known before: 1 for the visual tokens at these places of each row, 0 for all others."""

    places: Places
    probe: None = None

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """1 for the told tokens of every row."""
        scores = torch.zeros(view.slot.shape, device=view.slot.device)
        for row, places in enumerate(self.places):
            # Places count a row's visual tokens, scores its whole sequence, padding and text included.
            visual = view.candidates[row].nonzero()[:, 0]
            scores[row, visual[list(places)]] = 1.0
        return scores

    def __call__(self, view: View, scores: Tensor) -> Sequence[tuple[int, int]]:
        """As many tokens of each row as were told, none merged; `scores` (batch, tokens) do not matter."""
        return [(len(places), 0) for places in self.places]


@dataclass(frozen=True)
class Listed(Method):
    """From behind layer `after` on, only the told places remain. Rows of a batch in order, none repeated."""

    name: ClassVar[str] = "listed"
    summary: ClassVar[str] = "only tokens that were told before"

    places: Places = ()
    after: int = 2

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage that drops whatever was not told."""
        told = Told(self.places)
        return (Stage(after=self.after, score=told, measure=told),)

    def plan(
        self, shape: ModelShape, visual: int, text: Number, budget: Budget = None, preset: str | None = None
    ) -> Plan:
        """The longest row's count bounds all."""
        most = min(visual, max((len(places) for places in self.places), default=0))
        return Plan(shape.layers, visual, text, (Cut(self.after, most, 0),) if visual else ())


def oracle(samples: Sequence[Sample], after: int = 2) -> Listed:
    """The oracle of some samples' pictures: layers 1 to `after` see every token, the others what is shown."""
    return Listed(tuple(sample.shown for sample in samples), after)
