"""Beyond the paper: pruning layers *and* how many tokens each stage keeps, chosen together for a target average.

The paper measures profiles at one share of tokens and spends a budget geometrically. With profiles at several shares,
x_i(v) is how well a model answers from layer i's first v; a schedule is worth what its stages know, layer by layer:

    U = i_1 + sum_k x_{i_k}(v_k) * (layers until the next stage),   P = U / L,

the layers before the first stage counting as whole, subject to the average of the tokens that layers see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from swiftvlm.amounts import Number
from swiftvlm.errors import SelectionError

Profiles = Mapping[float, Sequence[Number]]


@dataclass(frozen=True)
class Split:
    """Pruning layers from 1 (as `SwiftVLM.layers`), each one's share of tokens kept, P, and the average it costs."""

    layers: tuple[int, ...]
    shares: tuple[float, ...]
    value: Number
    average: Number

    def counts(self, visual: int, merged_share: Number) -> tuple[int, ...]:
        """`SwiftVLM.counts` (k1, Z1, k2, ...) for rows of `visual` tokens; rounded down, so the average holds."""
        found: list[int] = []
        for share in self.shares:
            kept = max(1, int(share * visual + 1e-9))
            found += [kept, int(kept * merged_share / (1 - merged_share) + 1e-9)]
        return tuple(found[:-1])


@dataclass(frozen=True)
class _Path:
    """A schedule up to its last stage: layers run and what they cost and are worth before it."""

    layers: tuple[int, ...]
    shares: tuple[float, ...]
    cost: Number
    worth: Number


def split(profiles: Profiles, average: Number, stages: int = 3, merged_share: Number = 0.2) -> Split:
    """The schedule of exactly `stages` stages with the largest P whose average share of tokens is at most `average`.

    `profiles`: share -> x_1 ... x_L. Exact over the measured shares: of all schedules that end in the same stage, only
    those that no other beats in both cost and worth go on. A stage that bypasses costs its merged tokens, too.

    Raises:
        SelectionError: profiles of different depths, shares outside (0, 1), or an average that no schedule meets.
    """
    depth = _depth(profiles)
    paths = [_Path((), (), 0.0, 0.0)]
    for _ in range(stages):
        fresh: list[_Path] = []
        for path, share, layer in product(paths, profiles, range(1, depth + 1)):
            if _after(path.layers, layer) > _last(path):
                fresh.append(_extended(path, layer, share, profiles, merged_share))
        paths = _best(fresh)
    ended = [_finished(path, depth, profiles) for path in paths]
    able = [one for one in ended if one.average <= average + 1e-9]
    if not able:
        least = min((one.average for one in ended), default=1.0)
        raise SelectionError(
            f"an average of {average:g} of the tokens cannot be met by {stages} stages of shares "
            f"{', '.join(f'{share:g}' for share in profiles)}: the least is {least:.3f}"
        )
    return max(able, key=lambda one: (one.value, -one.average))


def _depth(profiles: Profiles) -> int:
    depths = {len(values) for values in profiles.values()}
    if len(depths) != 1 or any(not 0 < share < 1 for share in profiles):
        raise SelectionError(f"profiles need one depth and shares in (0, 1), got {sorted(profiles)} of {depths} layers")
    return depths.pop()


def _after(before: tuple[int, ...], layer: int) -> int:
    """Layers run when a stage acts: the first acts behind its layer, all others before theirs."""
    return layer - 1 if before else layer


def _last(path: _Path) -> int:
    return _after(path.layers[:-1], path.layers[-1]) if path.layers else 0


def _extended(path: _Path, layer: int, share: float, profiles: Profiles, merged_share: Number) -> _Path:
    span = _after(path.layers, layer) - _last(path)
    # Until a stage acts, layers see what the stage before left them, its merged tokens included.
    seen, known = 1.0, 1.0
    if path.layers:
        seen = path.shares[-1] / (1 - merged_share)
        known = profiles[path.shares[-1]][path.layers[-1] - 1]
    cost, worth = path.cost + span * min(1.0, seen), path.worth + span * known
    return _Path((*path.layers, layer), (*path.shares, share), cost, worth)


def _finished(path: _Path, depth: int, profiles: Profiles) -> Split:
    """The last stage drops: it costs what it keeps."""
    span, share = depth - _last(path), path.shares[-1]
    worth = path.worth + span * profiles[share][path.layers[-1] - 1]
    return Split(path.layers, path.shares, worth / depth, (path.cost + span * share) / depth)


def _best(paths: Sequence[_Path]) -> list[_Path]:
    """Of paths that end alike, those that cost less than every path that is worth as much."""
    kept: list[_Path] = []
    fronts: dict[tuple[int, float], Number] = {}
    for path in sorted(paths, key=lambda path: (path.cost, -path.worth)):
        end = path.layers[-1], path.shares[-1]
        if path.worth > fronts.get(end, -1.0):
            fronts[end] = path.worth
            kept.append(path)
    return kept
