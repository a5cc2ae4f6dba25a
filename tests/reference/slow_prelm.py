"""Slow, plain visual-token reduction in front of the language model, for one picture (one tile) at a time.

Words: a "patch" is an index into the side * side patches of the picture, 0-based, in raster order; where unpadding took
some of them away, into those that are left, while all of them take part in the tower. A "row" of the
attention is one query, post-softmax over all 1 + n keys, the [CLS] token included. "Received" attention is read at
the patches' columns only. "Tokens" of a hidden state are [CLS] first, then the patches.

Common to all methods: of equal values the lower patch wins, and where tokens are removed, winning means staying.
A count may exceed what is there; then everything stays. Everything is float32. All methods return the features in
the order in which the language model gets them, and for each the patch that it stands for, or -1.

Depths are those of CLIP-L's 24 layers: the deep ones are counted from the end, the shallow ones are scaled.

The rules that choose or merge tokens are functions without an underscore, which need no tower.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Tokens = tuple[Tensor, list[int]]


@dataclass
class Tower:
    """What a vision tower and a projector made of one picture of side * side patches, [CLS] at index 0.

    hidden: (1 + n, channels) each; hidden[0] enters layers[0], hidden[i] leaves layers[i - 1].
    q, k: per layer (heads, 1 + n, head_dim), outputs of q_proj and k_proj with their bias, not scaled.
    project: (m, channels) -> (m, D), the multimodal projector.
    here: raster indices of the patches that unpadding left, ascending; None for all of them.
    """

    hidden: list[Tensor]
    q: list[Tensor]
    k: list[Tensor]
    side: int
    project: Callable[[Tensor], Tensor]
    here: list[int] | None = None


def attention(tower: Tower, layer: int) -> Tensor:
    """The attention map of one layer, (heads, 1 + n, 1 + n); rows sum to 1."""
    queries, keys = tower.q[layer].float(), tower.k[layer].float()
    root = math.sqrt(queries.shape[2])
    heads = []
    for head in range(queries.shape[0]):
        rows = [torch.softmax(keys[head] @ query / root, dim=0) for query in queries[head]]
        heads.append(torch.stack(rows))
    return torch.stack(heads)


def scaled_depth(depth: int, layers: int) -> int:
    """Where depth `depth` of CLIP-L's 24 layers lies in a tower of `layers` layers."""
    return round(depth * layers / 24)  # Python's round: halves go to the even number


def _cls_row(tower: Tower, layer: int) -> Tensor:
    """Attention that the patches receive from [CLS], (heads, n)."""
    return torch.stack([_patches(tower, row) for row in attention(tower, layer)[:, 0]])


def _patches(tower: Tower, states: Tensor) -> Tensor:
    """What states (1 + n, ...) hold for the patches, without [CLS] and what unpadding took away."""
    return states[1:].float() if tower.here is None else states[1:].float()[tower.here]


def _cells(tower: Tower) -> list[int]:
    """The raster index of every patch on the whole grid."""
    return list(range(tower.side**2)) if tower.here is None else tower.here


def _project(tower: Tower, states: list[Tensor]) -> Tensor:
    """Token vectors (channels) -> features (m, D)."""
    return tower.project(torch.stack(states)).float()


def _best(scores: Tensor, among: list[int], count: int) -> list[int]:
    """The `count` patches of the highest scores (n,), best first."""
    return sorted(among, key=lambda patch: (-float(scores[patch]), patch))[: max(0, count)]


def _others(patches: list[int], total: int) -> list[int]:
    """The patches out of 0..total - 1 that are not listed, ascending."""
    return [patch for patch in range(total) if patch not in patches]


def _unit(vectors: Tensor) -> Tensor:
    """(m, channels) -> the same directions at length 1; zero vectors stay zero."""
    return vectors.float() / vectors.float().norm(dim=1, keepdim=True).clamp(min=1e-12)


def _cosines(vectors: Tensor) -> Tensor:
    """Cosine of every two of m vectors (m, channels) -> (m, m), exactly symmetric, so that ties are true ties."""
    units = _unit(vectors)
    cosines = torch.zeros(len(units), len(units))
    for one in range(len(units)):
        for other in range(one + 1):
            cosines[one, other] = cosines[other, one] = units[one].dot(units[other])
    return cosines


# VisionZip


def slow_visionzip(tower: Tower, dominant: int, contextual: int) -> Tokens:
    """VisionZip: `dominant` tokens, [CLS] counted, and `contextual` ones that the other patches are merged into.

    Order: [CLS], the dominant patches in raster order, the contextual tokens by ascending target.
    """
    with torch.no_grad():
        states = _patches(tower, tower.hidden[-2])
        total = len(states)
        received = _cls_row(tower, -2).sum(dim=0)
        chosen = sorted(_best(received, list(range(total)), dominant - 1))
        metric = _patches(tower, tower.k[-2].float().mean(dim=0))  # (n, head_dim)
        groups = contextual_groups(metric, _others(chosen, total), contextual)
        # Ambiguous: the notes do not say whether keys are normalised before or after the mean over heads; after.
        vectors = [tower.hidden[-2][0].float()] + [states[patch] for patch in chosen]
        for target, members in groups.items():
            vectors.append(target_plus_mean(states, target, members))
        return _project(tower, vectors), [-1, *chosen, *groups]


def contextual_groups(metric: Tensor, remaining: list[int], count: int) -> dict[int, list[int]]:
    """Target patch, ascending -> the patches assigned to it; metric (n, channels), remaining ascending.

    Targets are every step-th of the remaining patches, the first `count` of them. All others go to the target of
    the highest cosine.
    """
    if count < 1 or not remaining:
        return {}
    step = max(1, len(remaining) // count)
    targets = remaining[::step][:count]
    units = _unit(metric)
    groups: dict[int, list[int]] = {target: [] for target in targets}
    for patch in remaining:
        if patch not in targets:
            similar = {target: float(units[patch].dot(units[target])) for target in targets}
            groups[min(targets, key=lambda target: (-similar[target], target))].append(patch)
    return groups


def target_plus_mean(states: Tensor, target: int, members: list[int]) -> Tensor:
    """The target plus the mean of its members; a target without any stays as it is. states (n, channels)."""
    gathered = torch.zeros_like(states[target])
    for member in members:
        gathered = gathered + states[member]
    return states[target] + gathered / max(1, len(members))


# VisPruner


def slow_vispruner(tower: Tower, count: int, ratio: float = 0.5) -> Tokens:
    """VisPruner: int(count * ratio) patches that [CLS] attends to, the others as unlike each other as possible.

    Raster order.
    """
    with torch.no_grad():
        states = _patches(tower, tower.hidden[-2])
        count = min(count, len(states))
        received = _cls_row(tower, -2).mean(dim=0)
        ranked = _best(received, list(range(len(states))), len(states))
        important = int(count * ratio)
        # Ambiguous: "attention-sorted order" may run either way; from the most attended patch down.
        diverse = diverse_choice(states, ranked[important:], count - important)
        chosen = sorted(ranked[:important] + diverse)
        return _project(tower, [states[patch] for patch in chosen]), chosen


def diverse_choice(states: Tensor, order: list[int], count: int, at_once: int = 8) -> list[int]:
    """What is left of `order` when the most redundant patches are removed until `count` are left; states (n, channels).

    A round removes at most `at_once` patches out of every second one (the first, the third, ...), namely those with
    the highest cosine to any of the patches between them. The patches left are then the survivors, the highest such
    cosine first, and behind them those between. Of an odd number the first half has one more.
    """
    if count < 1:
        return []
    units = _unit(states)
    left = list(order)
    while len(left) > count:
        even, odd = left[::2], left[1::2]
        likeness = {one: max(float(units[one].dot(units[other])) for other in odd) for one in even}
        # Ambiguous: of equally redundant patches the lower one stays.
        ranked = sorted(even, key=lambda patch: (-likeness[patch], -patch))
        # A round may want to remove more than the even half has; then the whole half goes, and the next round the rest.
        left = ranked[min(at_once, len(left) - count) :] + odd
    return left


# PruMerge and PruMerge+


def slow_prumerge(tower: Tower, count: int | None = None) -> Tokens:
    """PruMerge: the `count` patches that [CLS] attends to most, each enriched, and one token made of all others.

    count: None keeps the outliers of this picture, possibly none. The last token comes on top of the count.
    Order: by falling attention, the extra token last.
    """
    with torch.no_grad():
        received = prumerge_scores(tower)
        if count is None:
            count = outlier_count(received)
        return _prumerge_tokens(tower, received, _best(received, list(range(len(received))), count))


def slow_prumerge_plus(tower: Tower, count: int | None = None) -> Tokens:
    """PruMerge+: what PruMerge keeps, and a grid on top of it, so that there are more than `count` + 1 tokens.

    count: None keeps the outliers of this picture, at least one.
    Read so: `count` patches are chosen by attention, ratio = count / n, step = int(1 / ratio), and the grid is
    every max(1, int(step / 3))-th patch from 0, ending before patch n - 1. Grid patches that are not kept yet come
    behind the kept ones, ascending; they are enriched like these; the extra token is made of what neither has.
    """
    with torch.no_grad():
        received = prumerge_scores(tower)
        if count is None:
            count = max(outlier_count(received), 1)
        kept = _best(received, list(range(len(received))), count)
        # Ambiguous: "attention order" could include the grid; it is appended, ascending, as "adds indices" says.
        grid = [patch for patch in grid_patches(len(received), count) if patch not in kept]
        return _prumerge_tokens(tower, received, kept + grid)


def prumerge_scores(tower: Tower) -> Tensor:
    """Attention (n,) of [CLS] to the patches in the last layer, all heads taken as one."""
    return one_head_row(tower.q[-1], tower.k[-1])[_cells(tower)]


def one_head_row(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention (n,) of [CLS] to the patches, all heads taken as one; queries, keys (heads, 1 + n, head_dim)."""
    wide_queries, wide_keys = joined_heads(queries), joined_heads(keys)
    logits = wide_keys @ wide_queries[0] / math.sqrt(wide_keys.shape[1])
    return torch.softmax(logits, dim=0)[1:]


def joined_heads(vectors: Tensor) -> Tensor:
    """(heads, tokens, head_dim) -> (tokens, heads * head_dim), the heads one behind the other."""
    return torch.cat(list(vectors.float()), dim=1)


def outlier_count(received: Tensor) -> int:
    """How many values (n,) lie above the third quartile by more than 1.5 times the distance of the quartiles."""
    first, third = torch.quantile(received, 0.25), torch.quantile(received, 0.75)
    bound = third + 1.5 * (third - first)
    return sum(1 for value in received if float(value) > float(bound))


def grid_patches(total: int, count: int) -> list[int]:
    """The grid of PruMerge+ over `total` patches, ascending; coarser, the smaller the count."""
    if count < 1:
        raise ValueError(f"a ratio needs a count of at least 1, not {count}")
    # Ambiguous: int(1 / ratio) is taken exactly, total // count, without the rounding of ratio.
    step = total // count
    return list(range(0, total - 1, max(1, step // 3)))


def enriched(states: Tensor, metric: Tensor, received: Tensor, patch: int, nearest: int = 32) -> Tensor:
    """A patch plus the attention-weighted sum of the `nearest` patches most like it, kept or not; itself excluded.

    states (n, channels) before any enrichment; metric (n, width) for the cosines; received (n,) are the weights.
    """
    units = _unit(metric)
    likeness = torch.stack([units[patch].dot(other) for other in units])
    # Ambiguous: the neighbours are all other patches, not only the dropped ones.
    vector = states[patch]
    for other in _best(likeness, _others([patch], len(states)), nearest):
        vector = vector + received[other] * states[other]
    return vector


def _prumerge_tokens(tower: Tower, received: Tensor, kept: list[int]) -> Tokens:
    """The kept patches, enriched, in the given order, and the extra token (zero before the projector if none is left).

    received (n,).
    """
    # Ambiguous: the features are not named for PruMerge; hidden[-2], which LLaVA reads, merged before the projector.
    states = _patches(tower, tower.hidden[-2])
    metric = _patches(tower, joined_heads(tower.k[-1]))
    vectors = [enriched(states, metric, received, patch) for patch in kept]
    extra = torch.zeros_like(states[0])
    for patch in _others(kept, len(states)):
        extra = extra + received[patch] * states[patch]
    return _project(tower, [*vectors, extra]), [*kept, -1]


# DivPrune


def slow_divprune(embeds: Tensor, count: int) -> list[int]:
    """DivPrune on projected patches (n, D): `count` of them, each as far as possible from those before; ascending.

    Distance is 1 - cosine. The first is the one farthest from its nearest neighbour.
    """
    with torch.no_grad():
        distances = 1 - _cosines(embeds)
        total = len(embeds)
        chosen: list[int] = []
        while len(chosen) < min(count, total):
            gaps = torch.zeros(total)
            for patch in range(total):
                rivals = chosen or _others([patch], total)
                gaps[patch] = min((float(distances[patch, rival]) for rival in rivals), default=0.0)
            chosen += _best(gaps, _others(chosen, total), 1)
        return sorted(chosen)


# CDPruner


def slow_cdpruner(embeds: Tensor, relevance: Tensor, count: int) -> list[int]:
    """CDPruner on projected patches (n, D) and their raw relevance (n,): `count` of them, ascending.

    Greedy choice of the largest determinant of L, L_ij = r_i * cosine_ij * r_j: each step takes the patch that
    multiplies the determinant by the most. That factor is what is left of L_ii when the part which the chosen
    ones explain is taken off.
    """
    with torch.no_grad():
        weights = min_max(relevance.float())
        kernel = weights[:, None] * _cosines(embeds) * weights[None, :]
        total = len(embeds)
        factors = torch.diagonal(kernel).clone()
        explained: list[Tensor] = []  # per step, one column (n,) of the Cholesky factor of L
        chosen: list[int] = []
        while len(chosen) < min(count, total):
            best = _best(factors, _others(chosen, total), 1)[0]
            column = torch.zeros(total)
            # Ambiguous: a patch whose factor is not positive (nothing gained, or rounding) explains nothing.
            if float(factors[best]) > 0:
                rest = kernel[best].clone()
                for earlier in explained:
                    rest = rest - earlier[best] * earlier
                column = rest / factors[best].sqrt()
            factors = factors - column**2
            explained.append(column)
            chosen.append(best)
        return sorted(chosen)


def min_max(values: Tensor) -> Tensor:
    """Values (n,) stretched to 0..1 over this picture."""
    low, high = values.min(), values.max()
    if float(high) == float(low):
        return torch.ones_like(values)  # Ambiguous: without any difference all are fully relevant.
    return (values - low) / (high - low)


# VScan


def slow_vscan(tower: Tower, count: int, layer: int | None = None) -> Tokens:
    """VScan's stage in front of the language model: half the patches by window, half over all; raster order.

    layer: whose [CLS] row rates within the windows; layers[5] of 24 if None. Every dropped patch is averaged into
    the kept one that it is most like, all on projected patches.
    """
    with torch.no_grad():
        if layer is None:
            layer = scaled_depth(5, len(tower.q))
        shallow, deep = _cls_row(tower, layer).mean(dim=0), _cls_row(tower, -2).mean(dim=0)
        chosen = local_patches(shallow, tower.side, count, tower.here)
        chosen += _best(deep, _others(chosen, len(deep)), count - len(chosen))
        embeds = tower.project(_patches(tower, tower.hidden[-2])).float()
        return averaged_into(embeds, sorted(chosen)), sorted(chosen)


def local_patches(scores: Tensor, side: int, count: int, cells: list[int] | None = None) -> list[int]:
    """Of each of the 4 x 4 windows the int(count / 2) // 16 patches of the highest scores (n,).

    cells: the raster index of each patch; None where all are there.
    """
    if side % 4:
        raise ValueError(f"4 x 4 windows need a side that 4 divides, not {side}")
    width = side // 4
    chosen = []
    for top in range(0, side, width):
        for left in range(0, side, width):
            inside = [row * side + column for row in range(top, top + width) for column in range(left, left + width)]
            window = [patch for patch, cell in enumerate(cells or range(side * side)) if cell in inside]
            chosen += _best(scores, window, int(count / 2) // 16)
    return chosen


def averaged_into(embeds: Tensor, kept: list[int]) -> Tensor:
    """Each kept patch averaged with the dropped ones that are most like it (cosine); embeds (n, D) -> (kept, D)."""
    units = _unit(embeds)
    groups: dict[int, list[int]] = {patch: [] for patch in kept}
    for patch in _others(kept, len(embeds)):
        similar = {other: float(units[patch].dot(units[other])) for other in kept}
        groups[min(kept, key=lambda other: (-similar[other], other))].append(patch)
    merged = []
    for patch in kept:
        total = embeds[patch]
        for member in groups[patch]:
            total = total + embeds[member]
        merged.append(total / (1 + len(groups[patch])))
    return torch.stack(merged)


# HiPrune


def slow_hiprune(tower: Tower, count: int, alpha: float = 0.1, layer: int | None = None) -> Tokens:
    """HiPrune: anchors of a middle layer, their neighbours, and the patches that a deep layer attends to.

    layer: the middle one; layers[8] of 24 if None. Both rate by the attention received from all 1 + n tokens.
    Raster order.
    """
    with torch.no_grad():
        if layer is None:
            layer = scaled_depth(8, len(tower.q))
        states = _patches(tower, tower.hidden[-2])
        everything = list(range(len(states)))
        count = min(count, len(states))
        middle, deep = _received_from_all(tower, layer), _received_from_all(tower, -2)
        anchors = _best(middle, everything, round(count * alpha / 5))  # may be none for small counts
        cells = _cells(tower)
        close = neighbours([cells[anchor] for anchor in anchors], tower.side)
        near = [patch for patch, cell in enumerate(cells) if cell in close]
        # Ambiguous: too many neighbours (alpha close to 1) are cut to those that the middle layer rates best.
        chosen = anchors + _best(middle, [patch for patch in near if patch not in anchors], count - len(anchors))
        chosen += _best(deep, _others(chosen, len(states)), count - len(chosen))
        return _project(tower, [states[patch] for patch in sorted(chosen)]), sorted(chosen)


def neighbours(anchors: list[int], side: int) -> list[int]:
    """The anchors and the patches left, right, above and below, ascending.

    As in the published code the row's end does not stop left and right, and numbers outside of the picture are
    clamped to its first or last patch, which so become neighbours.
    """
    last = side * side - 1
    near = set(anchors)
    for anchor in anchors:
        for offset in (-1, 1, -side, side):
            near.add(min(max(anchor + offset, 0), last))
    return sorted(near)


def _received_from_all(tower: Tower, layer: int) -> Tensor:
    """Attention (n,) that the patches receive, mean over heads and over all 1 + n rows."""
    return _patches(tower, attention(tower, layer).mean(dim=(0, 1)))


# HoloV


def slow_holov(tower: Tower, count: int, alpha: float = 0.09, crops: int = 16) -> Tokens:
    """HoloV: every crop, a run of patches in raster order, keeps its share of patches that [CLS] attends to.

    The tokens come in RASTER order, unlike in the published code, where attention orders them within a crop.
    """
    with torch.no_grad():
        states = _patches(tower, tower.hidden[-2])
        embeds = tower.project(states).float()
        # Ambiguous: projecting [CLS] along or not makes no difference to a projector that works token by token.
        received = _cls_row(tower, -2).mean(dim=0)
        runs = crop_runs(len(states), crops)
        strength = 1000 * received
        crop_scores = []
        for run in runs:
            spread = crop_variances(embeds[run])
            # Crop by crop, so that a crop's mean says hardly more than its attention.
            scale = float(strength[run].abs().mean()) / (float(spread.abs().mean()) + 1e-6)
            crop_scores.append(float((strength[run] + alpha * spread * scale).mean()))
        budgets = crop_budgets(crop_scores, [len(run) for run in runs], min(count, len(states)))
        chosen = []
        for run, budget in zip(runs, budgets, strict=True):
            chosen += _best(received, run, budget)
        chosen = sorted(chosen)
        return embeds[chosen], chosen


def crop_runs(total: int, crops: int) -> list[list[int]]:
    """`crops` consecutive runs over `total` patches."""
    if crops > total:
        raise ValueError(f"{total} patches do not make {crops} crops")
    size, longer = divmod(total, crops)  # the first `longer` runs have one more
    starts = [crop * size + min(crop, longer) for crop in range(crops + 1)]
    return [list(range(starts[crop], starts[crop + 1])) for crop in range(crops)]


def crop_variances(embeds: Tensor) -> Tensor:
    """Per patch of one crop (c, D), how much its cosines to the others differ -> (c,).

    Its cosine to itself is set to 0. Mean and variance divide by c - 1, but the variance sums c deviations, that of
    the 0 among them. A crop of one patch has variance 0.
    """
    size = len(embeds)
    if size == 1:
        return torch.zeros(1)
    cosines = _cosines(embeds)
    variances = []
    for patch in range(size):
        row = cosines[patch].clone()
        row[patch] = 0
        # Ambiguous: the mean, too, is that over the c - 1 others.
        mean = row.sum() / (size - 1)
        variances.append(((row - mean) ** 2).sum() / (size - 1))
    return torch.stack(variances)


def crop_budgets(scores: list[float], sizes: list[int], count: int) -> list[int]:
    """How many patches each crop keeps, `count` in total: shares by score, none larger than the crop.

    Shares are rounded down; the best crops get one more until it comes out even. What a crop has no room for goes to
    the others, best first, each filled up before the next one gets any.
    """
    values = torch.tensor(scores)
    budgets = [math.floor(float(share)) for share in count * values / values.sum()]
    ranked = _best(values, list(range(len(scores))), len(scores))
    for crop in ranked[: count - sum(budgets)]:
        budgets[crop] += 1
    surplus = sum(max(0, budget - size) for budget, size in zip(budgets, sizes, strict=True))
    budgets = [min(budget, size) for budget, size in zip(budgets, sizes, strict=True)]
    # Ambiguous: the surplus fills crops up one after the other, rather than one patch each in turn.
    for crop in ranked:
        moved = min(surplus, sizes[crop] - budgets[crop])
        budgets[crop] += moved
        surplus -= moved
    return budgets


# Nuwa


def slow_nuwa(tower: Tower, count: int) -> Tokens:
    """Nuwa's stage in front of the language model: patches spread over 2 x 2 regions, some gather their surroundings.

    Gathered before the projector, on hidden[-2]. Raster order.
    """
    with torch.no_grad():
        states = _patches(tower, tower.hidden[-2])
        count = min(count, len(states))
        received = _cls_row(tower, -2).sum(dim=0)  # Ambiguous: as in the code, without the norm of the keys.
        kept = sorted(_best(received, region_candidates(received, tower.side, count, tower.here), count))
        pillars = pillar_patches(received, kept)
        layers = len(tower.q)
        # Ambiguous: "16..24" includes both ends.
        depths = range(scaled_depth(16, layers), scaled_depth(24, layers) + 1)
        metric = torch.stack([_patches(tower, tower.hidden[depth]) for depth in depths]).mean(dim=0)
        vectors = []
        for patch in kept:
            alone = patch in pillars
            vectors.append(states[patch] if alone else gathered(states, metric, patch, tower.side, tower.here))
        return _project(tower, vectors), kept


def region_candidates(scores: Tensor, side: int, count: int, cells: list[int] | None = None) -> list[int]:
    """The best patches of every 2 x 2 region, equally many, as few as make at least `count` in all; scores (n,).

    cells: the raster index of each patch; None where all are there.
    """
    regions: dict[tuple[int, int], list[int]] = {}
    for patch, cell in enumerate(cells or range(side * side)):
        # Ambiguous: an odd side has smaller regions at its right and lower edge, which offer what they have.
        regions.setdefault((cell // side // 2, cell % side // 2), []).append(patch)
    for each in range(1, 5):
        candidates = [patch for region in regions.values() for patch in _best(scores, region, each)]
        if len(candidates) >= count:
            return sorted(candidates)
    return list(range(len(scores)))


def pillar_patches(scores: Tensor, kept: list[int]) -> list[int]:
    """The kept patches that gather nothing: those that reach the .55 quantile of the kept ones' scores."""
    values = torch.stack([scores[patch] for patch in kept])
    bound = float(torch.quantile(values, 0.55))  # between two values: linear
    return [patch for patch in kept if float(scores[patch]) >= bound]


def gathered(states: Tensor, metric: Tensor, patch: int, side: int, cells: list[int] | None = None) -> Tensor:
    """A patch plus the weighted sum of its surroundings; states (n, channels), metric (n, channels) for the cosines.

    Weights fall with the distance on the grid, to 0 at a radius, and with the cosine, to 0 at 0. They are divided
    by their sum, the patch's own weight included; then its own weight becomes 1. cells as in region_candidates.
    """
    radius = math.sqrt(280) * side / 24
    units = _unit(metric)
    weights = []
    places = [divmod(cell, side) for cell in cells or range(side * side)]
    for other in range(len(places)):
        distance = math.dist(places[patch], places[other])
        weights.append(units[patch].dot(units[other]).clamp(min=0) * max(0.0, 1 - distance / radius))
    # A metric of zeros has no weight at all, not even its own; nothing is gathered then.
    total = torch.stack(weights).sum().clamp(min=1e-12)
    vector = states[patch]
    for other in range(len(places)):
        if other != patch:
            vector = vector + weights[other] / total * states[other]
    return vector
