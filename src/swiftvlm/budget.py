"""Budgets and schedules: from "192 tokens on average" to the count of every stage, or a clear reason why not."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from swiftvlm.amounts import Budget, Number
from swiftvlm.errors import BudgetError
from swiftvlm.plans import Cut, Plan

T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    """What a schedule must fill in: a stage that acts after `after` layers and may leave merged tokens behind."""

    after: int
    merges: bool = False
    merged_share: float = 0.0  # of the stage's total
    reevaluates: bool = False

    @property
    def least(self) -> int:
        """The fewest tokens the stage can leave: one kept, and one merged where it merges."""
        return 2 if self.merges and self.merged_share else 1

    def cut(self, kept: int, merged: int, available: int) -> Cut:
        """Clamp a stage's counts to the tokens it can choose from; what a stage does not merge is dropped."""
        kept = min(kept, available)
        return Cut(self.after, kept, min(merged, available - kept) if self.merges else 0, self.reevaluates)

    def split(self, total: int, available: int) -> Cut:
        """Split a total into kept and merged; a total that keeps everything merges nothing."""
        if total >= available or self.least == 1:
            return self.cut(total, 0, available)
        # A share that rounds to 0 merges one: without it, bypassed tokens would come back unchanged.
        merged = min(max(round(self.merged_share * total), 1), total - 1)
        return self.cut(total - merged, merged, available)


def _split_all(slots: Sequence[Slot], totals: Sequence[int], visual: int) -> tuple[Cut, ...]:
    """Split each stage's total; a stage behind a bypass chooses from all visual tokens, else from what was left."""
    cuts: list[Cut] = []
    for slot, total in zip(slots, totals, strict=True):
        # Behind a drop, what is gone stays gone: counts that grow again would promise tokens nobody has.
        available = visual if slot.reevaluates or not cuts else cuts[-1].total
        cuts.append(slot.split(total, available))
    return tuple(cuts)


def target_average(budget: Budget, visual: int) -> float | None:
    """The average number of visual tokens a budget allows a row of `visual` tokens; None = leave the row alone.

    An int is a number of tokens; a float in (0, 1] a fraction of the row. Raises `BudgetError` for anything else.
    """
    # To Python True is an int: it would pass for a budget of one token.
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise BudgetError(f"a budget is an int (visual tokens) or a float in (0, 1] (a fraction), got {budget!r}")
    # `1` is a single token and `1.0` is everything, so the type decides, not the value.
    if isinstance(budget, int):
        if budget < 1:
            raise BudgetError(f"a budget in tokens must be at least 1, got {budget}")
        return None if visual <= budget else float(budget)
    if not 0.0 < budget <= 1.0:
        raise BudgetError(f"a budget given as a float is a fraction in (0, 1], got {budget}; write an int for tokens")
    return budget * visual


def reachable(slots: Sequence[Slot], layers: int, visual: int) -> tuple[float, float]:
    """Least and largest layer average that stages at these depths can produce for a row of `visual` tokens."""
    least = Plan(layers, visual, 0, _split_all(slots, [slot.least for slot in slots], visual))
    return least.average_tokens, float(visual)


def solve(slots: Sequence[Slot], layers: int, visual: int, average: Number, taper: float = 1.0) -> tuple[Cut, ...]:
    """Totals visual * q, visual * q**(1 + taper), ... with the largest q whose layer average stays within `average`.

    With `taper` 1 they are geometric: PyramidDrop's structure, which SwiftVLM inherits (methods: paper Table 3
    baseline); with 0 every stage leaves as many; with one stage it is FastV's single count. Counts are rounded down, so
    the budget is never exceeded. Raises `BudgetError` with the reachable range where even the smallest counts are too
    many.
    """
    least, most = reachable(slots, layers, visual)
    # The slack forgives the last bits of a division. Without stages one average can be met: that of everything.
    if average < least - 1e-9 or (not slots and average < most - 1e-9):
        refuse(slots, layers, visual, average, least)
    # Bisection to the last bit of a double: the average grows with the ratio, whatever the depths.
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        fits = _average(slots, layers, visual, middle, taper) <= average + 1e-9
        low, high = (middle, high) if fits else (low, middle)
    ratio = 1.0 if _average(slots, layers, visual, 1.0, taper) <= average + 1e-9 else low
    # Floor, not round: a budget is a promise. The tiny addend forgives a product that came out low by one bit.
    totals = [
        max(math.floor(visual * ratio ** (1 + taper * j) + 1e-6), min(slot.least, visual))
        for j, slot in enumerate(slots)
    ]
    return _shrink(slots, layers, visual, average, totals)


def refuse(slots: Sequence[Slot], layers: int, visual: int, average: Number, least: float) -> NoReturn:
    """Raise `BudgetError`: an average that these stages cannot reach, with the range they can."""
    # Rounded up: a user who asks for the printed figure must not be refused again.
    nearest = math.ceil(10 * least) / 10
    raise BudgetError(
        f"a budget of {average:g} visual tokens on average cannot be reached: stages after layers "
        f"{[slot.after for slot in slots]} of {layers} leave between {nearest} and {visual:.1f} of {visual} tokens"
    )


def furthest(
    options: Sequence[T],
    cuts: Callable[[T], tuple[Cut, ...]],
    slots: Sequence[Slot],
    layers: int,
    visual: int,
    average: Number,
) -> tuple[Cut, ...]:
    """The cuts of the last option, in order of what they leave, that stays within an average.

    Every prompt asks for its plan, so not every option is tried. Raises `BudgetError` where the first is too much.
    """

    def average_of(option: T) -> float:
        return Plan(layers, visual, 0, cuts(option)).average_tokens

    if average_of(options[0]) > average + 1e-9:
        refuse(slots, layers, visual, average, average_of(options[0]))
    # A binary search: nothing checks that the averages of `options` ascend.
    return cuts(options[bisect_right(options, average + 1e-9, key=average_of) - 1])


def _average(slots: Sequence[Slot], layers: int, visual: int, ratio: float, taper: float) -> float:
    """Layer average of the *unrounded* totals."""
    # How a total splits does not matter here: kept and merged tokens cost the layers behind the same.
    depths = [*(slot.after for slot in slots), layers]
    counts: list[float] = [visual * ratio ** (1 + taper * j) for j in range(len(slots))]
    spans = [(b - a) * count for a, b, count in zip(depths, depths[1:], counts, strict=False)]
    return (depths[0] * visual + sum(spans)) / layers


def _shrink(slots: Sequence[Slot], layers: int, visual: int, average: Number, totals: list[int]) -> tuple[Cut, ...]:
    """Where a stage's minimum lifted the average over the budget, take the excess from the largest other stage."""
    # Ends in time: `solve` has refused averages that even the least counts exceed.
    while True:
        cuts = _split_all(slots, totals, visual)
        if Plan(layers, visual, 0, cuts).average_tokens <= average + 1e-9:
            return cuts
        spare = [total - min(slot.least, visual) for slot, total in zip(slots, totals, strict=True)]
        totals[spare.index(max(spare))] -= 1


def scale(table: Sequence[tuple[int, int]], slots: Sequence[Slot], published: int, visual: int) -> tuple[Cut, ...]:
    """A published table of (kept, merged) for rows of `published` tokens, as fractions of a row of `visual` tokens."""
    cuts: list[Cut] = []
    for slot, (kept, merged) in zip(slots, table, strict=True):
        # LLaVA-NeXT and other grids take the same fractions (ambiguity Q); what is not zero stays at least one.
        if visual != published:
            kept, merged = max(1, kept * visual // published), max(min(merged, 1), merged * visual // published)
        available = visual if slot.reevaluates or not cuts else cuts[-1].total
        cuts.append(slot.cut(kept, merged, available))
    return tuple(cuts)


def pick_preset(presets: Mapping[str, object], name: str, method: str) -> str:
    """Check a preset's name. Raises `BudgetError` listing the known ones."""
    if not isinstance(name, str) or name not in presets:
        known = ", ".join(presets) or "none"
        raise BudgetError(f"{method} has no preset {name!r}; it has: {known}")
    return name


def shares(count: int, sizes: Sequence[int]) -> list[int]:
    """A count in proportion to some sizes, no more than they hold: rounded down, then the largest remainders.

    Ties go to the first.
    """
    total = sum(sizes)
    count = min(count, total)
    found = [count * size // max(total, 1) for size in sizes]
    left = sorted(range(len(sizes)), key=lambda i: (-(count * sizes[i] % max(total, 1)), i))
    # Each unit goes to another size: there are no more of them than sizes with a remainder, and those are not full.
    for index in left[: count - sum(found)]:
        found[index] += 1
    return found
