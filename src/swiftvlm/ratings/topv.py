"""TopV's importance: what a transport plan between a layer's inputs and outputs moves."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swiftvlm.scores import View, marked

# All four are a third-party version's: no constant of the paper was found at first hand.
SPREAD = 10.0  # grid cells
MIDDLE = 0.01  # weight of the distance to the middle
REGULAR = 0.1
STEPS = 3


@dataclass(frozen=True)
class Transported:
    """Row sums of the plan; among the tokens that are not best, every `recover`-th comes before all other ones."""

    recover: int
    probe: Literal["previous"] = "previous"

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """1 for chosen tokens, 0 for all others."""
        entered, cells = view.entered(), view.cells()

        def choose(row: int, visual: Tensor, keep: int) -> Tensor:
            worth = importance(entered[row, visual].float(), view.hidden[row, visual].float(), cells[row, visual])
            return visual[recovered(worth, keep, self.recover)]

        return marked(view, choose)


def importance(
    before: Float[Tensor, "m dim"], behind: Float[Tensor, "m dim"], cells: Int[Tensor, "m 4"]
) -> Float[Tensor, " m"]:
    """What each token sends, from `before` to `behind`."""
    # (m, m). Not by matrix products: they round distances of near states.
    apart = torch.cdist(before, behind, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    # The last term is the same along a row, so that fitting rows takes it out again: it does not change the plan.
    cost = _stretched(apart) + _stretched(_spatial(cells)) + MIDDLE * _stretched(_off_middle(cells))[:, None]
    kernel, even = -cost / REGULAR, -math.log(len(cost))
    # In logarithms, each potential found anew from the other; columns last, since fitted rows all have the same sum.
    rows = columns = torch.zeros_like(cost[0])
    for _ in range(STEPS):
        rows = even - torch.logsumexp(kernel + columns, dim=1)
        columns = even - torch.logsumexp(kernel + rows[:, None], dim=0)
    return (kernel + rows[:, None] + columns).exp().sum(1)


def recovered(worth: Float[Tensor, " m"], count: int, step: int) -> Int[Tensor, " k"]:
    """The best, and every `step`-th of the others, `count` in all; a wider step where the best would be too few."""
    total = len(worth)
    order = worth.sort(descending=True, stable=True).indices
    if count >= total or count < 2:
        return order[:count]
    best = _best_of(count, total, step)
    # Ends: with a step of `total` all but one of the count are best ones. The sixth is ours.
    while 6 * best < count:
        step += 1
        best = _best_of(count, total, step)
    first = order[:best]
    free = torch.ones(total, dtype=torch.bool, device=worth.device)
    free[first] = False
    # In raster order, as `visual` ascends.
    taken = torch.cat([first, free.nonzero()[:, 0][::step]])
    more = order[~torch.isin(order, taken)]
    return torch.cat([taken, more[: count - len(taken)]])


def _best_of(count: int, total: int, step: int) -> int:
    """The largest k with k + ceil((total - k) / step) <= count, 0 where there is none."""
    for best in range(count, 0, -1):
        if best + -(-(total - best) // step) <= count:
            return best
    return 0


def _stretched(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if bool(high > low) else torch.zeros_like(values)


def _spatial(cells: Int[Tensor, "m 4"]) -> Float[Tensor, "m m"]:
    """1 - exp(-d^2 / 2 s^2) within a tile; 1 between tiles, and around tokens without a place."""
    place = cells[:, 2:].float()
    square = ((place[:, None] - place[None]) ** 2).sum(-1)
    # Newlines of one image share its number and a tile of -1: without a row they are near to nothing.
    near = (cells[:, None, :2] == cells[None, :, :2]).all(-1) & (cells[:, None, 2] >= 0) & (cells[None, :, 2] >= 0)
    table = torch.where(near, 1 - torch.exp(-square / (2 * SPREAD**2)), 1.0)
    return table.fill_diagonal_(0.0)


def _off_middle(cells: Int[Tensor, "m 4"]) -> Float[Tensor, " m"]:
    """Cells between a token and the middle of its tile; tokens without a place are as far off as any."""
    placed = cells[:, 2] >= 0
    far = torch.zeros(len(cells), device=cells.device)
    for tile in torch.unique(cells[placed][:, :2], dim=0):
        own = placed & (cells[:, :2] == tile).all(1)
        place = cells[own][:, 2:].float()
        far[own] = (place - place.amax(0) / 2).norm(dim=1)
    return torch.where(placed, far, far.max())
