"""The patches that others look at."""

from dataclasses import dataclass

from swiftvlm.stage import Positions
from swiftvlm.tower import Reduced, Seen, chosen, top


@dataclass(frozen=True)
class Received:
    """The best patches of a tile by the attention they receive from all tokens."""

    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Raster order, by the layer that made the features."""
        return chosen(seen, top(seen.from_all(seen.last), kept))
