"""What a method is made of: stages that say where it acts, how it scores, and what becomes of the rest. Data only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Positions = Literal["original", "renumbered"]


@runtime_checkable
class Score(Protocol):
    """How a stage rates tokens. Implementations live in `swiftvlm.scores`, or in a user's own module."""

    @property
    def probe(self) -> Literal["previous", "next"] | None:
        """Whose projections the score reads: the layer just run, the layer about to run, or none."""

    def rate(self, view: Any) -> Any:
        """Rate every token of the view: float tensor (batch, tokens); only candidates' values are used."""


@runtime_checkable
class Measure(Protocol):
    """Counts that depend on the image: decides after scoring how many tokens each row keeps, and merges."""

    def __call__(self, view: Any, scores: Any) -> Sequence[tuple[int, int]]:
        """(kept, merged) of each row: of the first at least 1 and never more than planned (`view.keep`) is taken."""


@runtime_checkable
class Reduction(Protocol):
    """What a method does before the language model, tile by tile; `swiftvlm.tower` has what it sees and returns."""

    @property
    def positions(self) -> Positions:
        """As in `Stage`."""

    @property
    def ordered(self) -> bool:
        """Whether tokens stand where their patches stood; else they are fed as returned, tile after tile."""

    def reduce(self, seen: Any, kept: int, merged: int) -> Any:
        """At most `kept` tokens and `merged` merged ones behind them, for a tile of at least as many patches."""


@dataclass(frozen=True)
class Drop:
    """Unselected tokens are gone for good."""


@dataclass(frozen=True)
class Merge:
    """Unselected tokens are grouped by cosine similarity (eq. 10) and each group's mean (eq. 11) goes on.

    `anchors`: "strided" spreads the group centres evenly over the unselected tokens, "grid" over the rows and columns
    of the image, "top" takes the best scored of them, "peaks" those of locally highest density, whose groups form by
    distance instead of cosine (SparseVLM), "labels" the middle one of each cluster that a reduction found (ViTCoP);
    `recycled`: the best scored share of the unselected that is merged at all, rounded down, plus one (1: all of them);
    `refine`: further k-means steps; `position`: the merged token turns with its anchor's position, or with the mean of
    its members'; `place`: it sits in its anchor's slot, or all merged tokens sit "behind" the kept ones, in the last of
    the slots that stay visual (SparseVLM); `added`: it is the anchor's own state plus the mean instead of the mean
    (ViTCoP). It competes again at the next stage.
    """

    anchors: Literal["strided", "top", "grid", "peaks", "labels"] = "strided"
    refine: int = 0
    position: Literal["anchor", "mean"] = "anchor"
    place: Literal["anchor", "behind"] = "anchor"
    recycled: float = 1.0
    added: bool = False


@dataclass(frozen=True)
class Bypass(Merge):
    """As `Merge`, but the members wait beside the layers and come back at the next stage (eqs. 12-13)."""


Rest = Drop | Merge | Bypass


@dataclass(frozen=True)
class Stage:
    """One place where visual tokens are chosen: `after` layers have run, layer `after + 1` sees the outcome.

    `positions`: keep the original position ids, number the survivors afresh from 0, or ("gapped") give them the places
    that they had among all tokens in front of the cut. `measure`: None where the plan's count holds, else what decides
    within it (the plan then gives the bound). `trims`: once the prompt is through, the caches of the layers before are
    cut to what this stage left, so that decoding sees the same tokens in all of them.
    """

    # Layers already run, so that "after layer x" and "before layer y" are one field: x, and y - 1.
    after: int
    score: Score
    rest: Rest = Drop()
    positions: Positions | Literal["gapped"] = "original"
    measure: Measure | None = None
    trims: bool = False
