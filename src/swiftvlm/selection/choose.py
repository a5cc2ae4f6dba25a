"""Pruning layers from a layer profile: the dynamic program of the paper's section 3.2.

A profile x_1 ... x_L says how well the model answers when every layer from the third on sees only the visual tokens
that layer i ranks first. Layers are numbered from 1, as in the paper. Chosen layers are records of the profile (eq. 4),
so what a later stage selects is never worse than what the one before it selected.

The paper's eq. 6 has x_2 in its first row and x_{i_2} in its second; the second must read x_{i_1}. Its last segment has
the length L - i_m although the layers i_m to L are one more; we keep the paper's measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from swiftvlm.amounts import Number
from swiftvlm.errors import SelectionError

Ways = dict[int, tuple[Number, tuple[int, ...]]]  # last layer -> the area so far and the layers that gave it

FIRST = 3  # the first layer that may prune; the paper excludes layers 1 and 2
ENOUGH = 0.98  # of what all layers together can add to the area: where the curve over the number of stages bends


@dataclass(frozen=True)
class Choice:
    """Pruning layers and what the profile says of them.

    `area`: U (eq. 7's numerator); `value`: P = U / (L - 2) (eq. 7); `gains`: what each layer adds to the area while its
    neighbours stay (eq. 8).
    """

    layers: tuple[int, ...]
    area: Number
    value: Number
    gains: tuple[Number, ...]


def _checked(profile: Sequence[Number]) -> Sequence[Number]:
    if len(profile) <= FIRST:
        raise SelectionError(f"a profile needs more than {FIRST} layers to choose from, got {len(profile)}")
    # Only NaN differs from itself.
    if any(value != value for value in profile):
        raise SelectionError(f"layer {next(i for i, x in enumerate(profile, 1) if x != x)} of the profile is NaN")
    return profile


def records(profile: Sequence[Number]) -> tuple[int, ...]:
    """Layers from 3 on that are better than every layer from 2 on before them (eq. 4, x_i > M_i).

    Raises:
        SelectionError: fewer than four layers, or a value that is no number.
    """
    # x_2: layers count from 1, the sequence from 0.
    best, found = _checked(profile)[1], []
    for layer in range(FIRST, len(profile) + 1):
        if profile[layer - 1] > best:
            best = profile[layer - 1]
            found.append(layer)
    return tuple(found)


def steps(profile: Sequence[Number], layers: Sequence[int]) -> tuple[Number, ...]:
    """y(t) for t = 1 ... L (eq. 6): the profile's value of the last layer that chose, x_2 before the first."""
    chosen = [profile[1]] * len(profile)
    for layer in layers:
        chosen[layer - 1 :] = [profile[layer - 1]] * (len(profile) - layer + 1)
    return tuple(chosen)


@dataclass(frozen=True)
class Unevenness:
    """How far a profile is from rising all the way: what makes choosing layers worth while.

    `worse`: layers from the third on that know less than some layer before them (from the second on), of `among`.
    `fall`: the largest x_i - x_j with i < j, `between` = (i, j); 0 where there is none.
    """

    worse: int
    among: int
    fall: Number
    between: tuple[int, int] | None


def unevenness(profile: Sequence[Number]) -> Unevenness:
    """Of layers 2 to L; layer 1 is left out as in eq. 4."""
    layers = range(FIRST, len(_checked(profile)) + 1)
    # Of equals `max` takes the first: a fall is told from the earliest layer that knew as much.
    best = {j: max(range(FIRST - 1, j), key=lambda i: profile[i - 1]) for j in layers}
    falls = {j: profile[best[j] - 1] - profile[j - 1] for j in layers}
    deepest = max(layers, key=lambda j: falls[j])
    worse = sum(fall > 0 for fall in falls.values())
    between = (best[deepest], deepest) if worse else None
    return Unevenness(worse, len(layers), max(falls[deepest], 0), between)


def rated(profile: Sequence[Number], layers: Sequence[int]) -> Choice:
    """What a profile says of given layers, chosen by whoever (eqs. 7 and 8).

    Raises:
        SelectionError: the layers do not ascend between 3 and L.
    """
    depth = len(_checked(profile))
    if list(layers) != sorted(set(layers)) or any(not FIRST <= layer <= depth for layer in layers):
        raise SelectionError(f"pruning layers ascend between {FIRST} and {depth}, got {tuple(layers)}")
    # i_0 = 2, the chosen layers, i_{m+1} = L (eq. 7).
    ends = [2, *layers, depth]
    values = [profile[end - 1] for end in ends]
    area = sum(values[k] * (ends[k + 1] - ends[k]) for k in range(len(ends) - 1))
    # Without layer k, the value of the one before would hold for its stretch, too (eq. 8).
    gains = tuple((values[k] - values[k - 1]) * (ends[k + 1] - ends[k]) for k in range(1, len(ends) - 1))
    return Choice(tuple(layers), area, area / (depth - 2), gains)


def choose(profile: Sequence[Number], stages: int, runnable: bool = False) -> Choice:
    """The `stages` records with the largest area U, in O(stages L^2) steps.

    `runnable`: only what `SwiftVLM(layers=...)` can run. Its first stage acts behind its layer, every later one before
    its own, so the second layer cannot follow the first directly; the paper's program does not know this.

    Ties go to the earlier layers. Eq. 9 is the program's last step: of two last layers i < j behind the same p, j is
    at least as good exactly if x_j (L - j) >= x_i (L - i) - x_p (j - i).

    Raises:
        SelectionError: fewer than one stage, or more than the profile has records that may follow each other.
    """
    allowed = records(profile)
    if not 1 <= stages <= len(allowed):
        raise SelectionError(
            f"the profile has {len(allowed)} layers better than all before them ({', '.join(map(str, allowed))}); "
            f"{stages} pruning layers cannot be chosen"
        )
    # Records ascend in value as in depth: among them any later layer may follow, and values need no comparing.
    best: Ways = {2: (0.0, ())}
    for stage in range(stages):
        # Nor can a lone first stage stand behind the last layer.
        able = allowed if not runnable or stage else [layer for layer in allowed if layer < len(profile)]
        # Stages act after layers x, y - 1, ...: the second needs y > x + 1, a later one only to be later.
        best = _next(profile, best, able, 2 if runnable and stage == 1 else 1)
    # L ends every way, chosen or not; behind a chosen L (gap 0) the last stretch is empty.
    ended = _extended(profile, best, len(profile), 0) if best else []
    if not ended:
        raise SelectionError(
            f"of the layers {allowed}, no {stages} can run behind each other: the second stage acts before its layer, "
            "so it cannot follow the first directly"
        )
    return rated(profile, max(ended, key=_rank)[1][:-1])


def _next(profile: Sequence[Number], best: Ways, able: Sequence[int], gap: int) -> Ways:
    """One layer more: the best way to each of the layers that are able, where there is one."""
    ways = {layer: _extended(profile, best, layer, gap) for layer in able}
    return {layer: max(found, key=_rank) for layer, found in ways.items() if found}


def _extended(profile: Sequence[Number], best: Ways, layer: int, gap: int) -> list[tuple[Number, tuple[int, ...]]]:
    """Area and layers of every way to go on to a layer from the best ways so far."""
    return [
        (area + profile[last - 1] * (layer - last), (*chosen, layer))
        for last, (area, chosen) in best.items()
        if layer - last >= gap
    ]


def _rank(way: tuple[Number, tuple[int, ...]]) -> tuple[Number, list[int]]:
    """Larger areas first, then earlier layers."""
    return way[0], [-layer for layer in way[1]]


def curve(profile: Sequence[Number], most: int | None = None, runnable: bool = False) -> tuple[Choice, ...]:
    """The best layers for every number of stages, from 1 to `most` or to as many as can be chosen.

    Raises:
        SelectionError: no layer is better than layer 2, so nothing can be chosen.
    """
    count = len(records(profile))
    if not count:
        raise SelectionError(
            f"no layer from {FIRST} on is better than layer 2 ({profile[1]:.3f}): nothing to choose; ask more "
            "questions (--samples), or keep another --share"
        )
    # One stage must be possible, and its error is the caller's. Where n are not, n + 1 are not either.
    found = [choose(profile, 1, runnable)]
    for stages in range(2, min(count, most or count) + 1):
        try:
            found.append(choose(profile, stages, runnable))
        except SelectionError:
            break
    return tuple(found)


def knee(profile: Sequence[Number], runnable: bool = False) -> Choice:
    """The fewest layers that gain 98% of what any number of records can gain over pruning by layer 2 throughout.

    The paper leaves the number open and uses three.

    Raises:
        SelectionError: as `curve`.
    """
    choices = curve(profile, runnable=runnable)
    nothing = rated(profile, ()).area
    most = max(choice.area for choice in choices) - nothing
    return next(choice for choice in choices if choice.area - nothing >= ENOUGH * most)
