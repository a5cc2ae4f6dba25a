"""ViTCoP: clusters found in the vision tower, thinned out and merged inside the model, where keys are small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from swiftvlm.budget import Slot, furthest
from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset, at_depth
from swiftvlm.plans import Cut
from swiftvlm.ratings.quotas import Quotas, SmallKeys
from swiftvlm.reductions.vitcop import Clustered
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Merge, Positions, Reduction, Stage

AFTER = (2, 22)


@dataclass(frozen=True)
class ViTCoP(Method):
    """ViTCoP (AAAI 2026, arXiv:2601.17818): three cuts, the first before the language model.

    Follows the official code, as far as read: the patches that [CLS] looks at (sum over heads) stay and are put in
    clusters by the density of their keys; behind layer 2 of 32 every cluster keeps its share of tokens, those of the
    smallest keys (L2 norm of the mean over heads), and the others become one, the middle one plus the mean of all;
    behind layer 22 the smallest keys of all stay, a fifth, numbered by their places among all in front of that cut.

    - `after`: layers run before the two cuts inside; None: 2 and 22 of 32 as fractions of the depth.
    - `counts`: (k1, 0, k2, Z2, k3), Z2 of them clusters. A budget keeps to the line that the published settings lie
      on: of a share f of the tokens on average, .2 + .9 f stay in front, and .03 + .3 times that are clusters. Where
      that leaves less than the budget (early cuts, shares above .4), more stay at the end, then in front (ours).
    """

    name: ClassVar[str] = "vitcop"
    summary: ClassVar[str] = "before the model by [CLS]; inside by clusters and small keys"
    paper: ClassVar[str] = "arXiv:2601.17818"
    source: ClassVar[str] = "official code, read in part"
    # .5, .4 and .3 of 576 in front, .18, .15 and .12 of these as clusters: `_solve` and `_cuts_of` have the lines
    # that these points lie on.
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset((0, *AFTER), ((288, 0), (202, 51), (51, 0))),
        "128": Preset((0, *AFTER), ((230, 0), (131, 34), (33, 0))),
        "64": Preset((0, *AFTER), ((172, 0), (57, 20), (15, 0))),
    }
    after: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None
    positions: Positions = "renumbered"
    merged_share = 0.2  # not a field: it only says that cuts merge

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after is not None and len(self.after) != 2:
            raise MethodError(f"after names the two cuts inside the model, such as (2, 22), got {self.after}")

    @property
    def reduction(self) -> Reduction:
        """Every tile on its own."""
        return Clustered(self.positions)

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """Quotas of clusters, then one cut by the size of keys."""
        first, second = self.after or at_depth(AFTER, shape.layers)
        score, merge = SmallKeys(), Merge(anchors="labels", added=True)
        # The first cut leaves positions alone either way: the official code counts anew at the second one only.
        last = Stage(second, score, positions="gapped") if self.positions == "renumbered" else Stage(second, score)
        return (Stage(first, Quotas(), merge), last)

    def _solve(self, slots: Sequence[Slot], layers: int, visual: int, average: float) -> tuple[Cut, ...]:
        front = max(int(0.2 * visual + 0.9 * average + 1e-9), 1)
        path = _path(min(front, visual), visual)
        return furthest(path, partial(_cuts_of, slots, visual), slots, layers, visual, average)


def _path(front: int, visual: int) -> list[tuple[int, int, int]]:
    """Tokens before the model, behind the first cut, behind the second: more and more of them, from hardly any to all.

    A fifth is left at the end. Where that is less than the budget (early cuts inside, large budgets), more of them are,
    and then more in front.
    """
    # `furthest` bisects: no step may leave fewer tokens on average than the one before.
    return [
        *((front, total, max(round(total / 5), 1)) for total in range(1, front + 1)),
        *((front, front, last) for last in range(max(round(front / 5), 1) + 1, front + 1)),
        *((every, every, every) for every in range(front + 1, visual + 1)),
    ]


def _cuts_of(slots: Sequence[Slot], visual: int, counts: tuple[int, int, int]) -> tuple[Cut, ...]:
    front, total, last = counts
    clusters = max(int((0.03 + 0.3 * front / visual) * front), 1)
    # Where all may stay nothing merges: a cluster of one would be added to itself.
    merged = min(clusters, total - 1) if total < front else 0
    pairs = ((front, 0), (total - merged, merged), (last, 0))
    return tuple(Cut(slot.after, *pair) for slot, pair in zip(slots, pairs, strict=True))
