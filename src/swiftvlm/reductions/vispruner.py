"""Patches that [CLS] looks at, and others that differ."""

from dataclasses import dataclass

import torch
from torch import Tensor

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, chosen, top, unit

AT_ONCE = 8  # patches that a round removes at most


@dataclass(frozen=True)
class ImportantAndDiverse:
    """`ratio` of the tokens by attention, the others by diversity."""

    ratio: float
    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Important patches, and what is left of the rest when the most redundant are removed."""
        ranked = top(seen.from_cls(seen.last).mean(0), len(seen.patch))
        important = int(kept * self.ratio)
        diverse = _diverse(unit(seen.features), ranked[important:], kept - important)
        return chosen(seen, torch.cat([ranked[:important], diverse]))


def _diverse(units: Tensor, left: Tensor, count: int) -> Tensor:
    """Halve, remove from the first half what is most like something in the second, and go on until `count` are left."""
    while len(left) > count > 0:
        # Of an odd number one more is even. Where a round takes all of these, the next one halves the odd ones.
        even, odd = left[::2], left[1::2]
        alike = (units[even] @ units[odd].T).amax(1)
        # Among equals the lower patch stays: higher ones first, then a stable sort.
        high = even.argsort(descending=True)
        ranked = high[alike[high].argsort(descending=True, stable=True)]
        # The survivors go on in this order, by which the next round halves them.
        left = torch.cat([even[ranked[min(AT_ONCE, len(left) - count) :]], odd])
    return left if count > 0 else left[:0]
