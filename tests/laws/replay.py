"""`Replay` keeps what a run kept: "chose the same" apart from "computed the same". `Scored`, `Recorded`: the scores."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from swiftvlm.amounts import Number
from swiftvlm.methods.base import Method
from swiftvlm.plans import Cut, Plan
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Reduction, Score, Stage
from swiftvlm.trace import Run


@dataclass(frozen=True)
class Chosen:
    """Per row: 1 for kept slots, 1/2 for anchors (the best of the rest), 1/4 for other grouped tokens, 0 for dropped.

    A token that was no candidate scores 1: the last prompt token, where it is visual and text has come behind it.
    """

    kept: tuple[Tensor, ...]
    anchors: tuple[Tensor, ...]
    candidates: tuple[Tensor, ...]
    groups: tuple[Tensor, ...]
    probe: None = None

    def rate(self, view: Any) -> Tensor:
        """Read the choice off every token's slot."""
        rated = torch.zeros(view.slot.shape)
        for row, slots in enumerate(view.slot):
            kept = torch.isin(slots, self.kept[row]) | ~torch.isin(slots, self.candidates[row])
            grouped = torch.isin(slots, self.candidates[row][self.groups[row] >= 0])
            rated[row] = kept.float() + (grouped.float() + torch.isin(slots, self.anchors[row]).float()) / 4
        return rated


@dataclass(frozen=True)
class Replay(Method):
    """The stages, rests and positions of a method, with the tokens that `run` kept and as many as it kept.

    Prompts may have grown behind the run's: old slots stay valid as long as nothing is put in front of them.
    """

    name: ClassVar[str] = "replay"

    run: Run
    original: tuple[Stage, ...]

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """The run's stages; where none ran (nothing to cut), none is due."""
        run = self.run
        choices = zip(self.original, run.kept, run.anchors, run.candidates, run.groups, strict=bool(run.kept))
        return tuple(replace(stage, score=Chosen(*choice), measure=None) for stage, *choice in choices)

    def plan(self, shape: ModelShape, visual: int, text: Number, budget: Any = None, preset: str | None = None) -> Plan:
        """The counts of the run's row with as many visual tokens, or with one less (see `Chosen`)."""
        if not visual or not self.run.kept:
            return Plan(shape.layers, visual, text)
        seen = max(count for count in self.run.visual if count <= visual)
        row = self.run.visual.index(seen)
        cuts = [
            Cut(stage.after, len(kept[row]) + visual - seen, len(anchors[row]))
            for stage, kept, anchors in zip(self.original, self.run.kept, self.run.anchors, strict=True)
        ]
        return Plan(shape.layers, visual, text, tuple(cuts))


@dataclass(frozen=True)
class Scored(Method):
    """The stages and counts of a method under another score."""

    name: ClassVar[str] = "scored"

    method: Method
    score: Score

    @property
    def reduction(self) -> Reduction | None:
        """The method's."""
        return self.method.reduction

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """The method's stages, each with the given score."""
        return tuple(replace(stage, score=self.score) for stage in self.method.stages(shape))

    def plan(self, shape: ModelShape, visual: int, text: Number, budget: Any = None, preset: str | None = None) -> Plan:
        """The method's plan."""
        return self.method.plan(shape, visual, text, budget, preset)


@dataclass(frozen=True)
class Listening:
    """A score that notes what it said, and the states and candidates it said it about."""

    score: Score
    heard: list[tuple[Tensor, Any]]

    @property
    def probe(self) -> Literal["previous", "next"] | None:
        """The inner score's."""
        return self.score.probe

    def rate(self, view: Any) -> Tensor:
        """The inner score's."""
        rated: Tensor = self.score.rate(view)
        self.heard.append((rated, view))
        return rated


@dataclass(frozen=True)
class Recorded(Method):
    """A method whose stages' scores and views end up in `heard`, one entry a stage and prefill."""

    name: ClassVar[str] = "recorded"

    method: Method
    heard: list[tuple[Tensor, Any]] = field(default_factory=list)

    @property
    def reduction(self) -> Reduction | None:
        """The method's."""
        return self.method.reduction

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """The method's stages, listened to."""
        return tuple(replace(s, score=Listening(s.score, self.heard)) for s in self.method.stages(shape))

    def plan(self, shape: ModelShape, visual: int, text: Number, budget: Any = None, preset: str | None = None) -> Plan:
        """The method's plan."""
        return self.method.plan(shape, visual, text, budget, preset)

    def gap(self, stage: int, keep: int) -> float:
        """How far the worst kept candidate of row 0 scored above the best of the rest."""
        scores, view = self.heard[stage]
        ranked = scores[0][view.candidates[0]].sort(descending=True).values
        return float(ranked[keep - 1] - ranked[keep]) if 0 < keep < len(ranked) else float("inf")
