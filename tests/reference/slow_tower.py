"""Slow, plain ToMe, CDPruner and the first parts of STAR and ViTCoP, for one picture (one tile) at a time.

Words, shapes and the rule for ties are those of slow_prelm. A tile of an unpadded picture may have fewer patches than
side * side where nothing reads the grid (all but ViTCoP); patches are then numbered as far as there are any.

The features are hidden[-2], so the layer that made them is layers[-2] and the last layer never runs.

The rules that choose or merge tokens are functions without an underscore, which need no tower.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .slow_prelm import (
    Tokens,
    Tower,
    _best,
    _cells,
    _cls_row,
    _others,
    _patches,
    _project,
    _unit,
    attention,
    joined_heads,
)


@dataclass
class Block:
    """What ToMe needs of one layer, because it runs the layer on other tokens than the tower did.

    layer_norm1, layer_norm2, mlp: (tokens, channels) -> the same shape.
    q, k, v: (tokens, channels) -> (heads, tokens, head_dim), with bias, not scaled.
    out: (tokens, heads * head_dim) -> (tokens, channels).
    """

    layer_norm1: Callable[[Tensor], Tensor]
    layer_norm2: Callable[[Tensor], Tensor]
    q: Callable[[Tensor], Tensor]
    k: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


# ToMe


def slow_tome(tower: Tower, blocks: list[Block], count: int) -> Tokens:
    """ToMe: tokens that are alike merge between the attention and the MLP of every layer but the last; raster order.

    Of tower only hidden[0] (1 + n, channels) and project are read. Fewer than n / 2 ** layers cannot be reached;
    then more than `count` tokens are left.
    """
    with torch.no_grad():
        states = torch.cat([tower.hidden[0][:1].float(), _patches(tower, tower.hidden[0])])
        sizes = [1] * len(states)
        places = list(range(-1, len(states) - 1))  # the patch that a token stands for, -1 for [CLS]
        count = min(count, len(states) - 1)
        layers = blocks[:-1]
        for number, block in enumerate(layers):
            normed = block.layer_norm1(states)
            metric = block.k(normed).float().mean(dim=0)  # (tokens, head_dim)
            states = states + sized_attention(block, normed, sizes)
            patches = len(states) - 1
            merges = tome_merges(metric, patches - tome_left(patches, count, len(layers) - number))
            states, sizes, order = tome_merged(states, sizes, merges)
            places = [places[token] for token in order]
            states = states + block.mlp(block.layer_norm2(states))
        raster = sorted(range(1, len(places)), key=lambda token: places[token])
        return _project(tower, [states[token] for token in raster]), [places[token] for token in raster]


def tome_left(patches: int, target: int, layers: int) -> int:
    """How many of the patches are left behind a layer, with `layers` layers to go, this one included.

    Equal steps down to the target, unless the rest of the layers could then not reach it: each can halve at best.
    """
    step = math.ceil((patches - target) / layers)
    return max(math.ceil(patches / 2), min(patches - step, target * 2 ** (layers - 1)))


def sized_attention(block: Block, normed: Tensor, sizes: list[int]) -> Tensor:
    """Attention where a token counts as often as it has patches: normed (tokens, channels) -> same shape."""
    queries, keys, values = block.q(normed).float(), block.k(normed).float(), block.v(normed).float()
    log_sizes = torch.tensor(sizes, dtype=torch.float32).log()
    heads = []
    for query, key, value in zip(queries, keys, values, strict=True):
        logits = query @ key.T / math.sqrt(query.shape[1]) + log_sizes[None, :]
        heads.append(torch.softmax(logits, dim=1) @ value)
    return block.out(joined_heads(torch.stack(heads)))


def tome_merges(metric: Tensor, count: int) -> dict[int, int]:
    """Which of the tokens in even places merge into which in odd places; metric (tokens, width), place 0 is [CLS].

    Every even place but the first looks for its best odd place; the `count` best pairs merge.
    """
    units = _unit(metric)
    even, odd = range(2, len(units), 2), range(1, len(units), 2)
    partner, likeness = {}, {}
    for token in even:
        cosines = {other: float(units[token].dot(units[other])) for other in odd}
        partner[token] = min(odd, key=lambda other, cosines=cosines: (-cosines[other], other))
        likeness[token] = cosines[partner[token]]
    merging = sorted(even, key=lambda token: (-likeness[token], token))[:count]
    return {token: partner[token] for token in sorted(merging)}


def tome_merged(states: Tensor, sizes: list[int], merges: dict[int, int]) -> tuple[Tensor, list[int], list[int]]:
    """Merge states (tokens, channels), weighted by their sizes -> new states, new sizes, old place of each."""
    unmerged = [token for token in range(0, len(states), 2) if token not in merges]
    order = unmerged + list(range(1, len(states), 2))
    new_states, new_sizes = [], []
    for token in order:
        members = [token] + [source for source, target in merges.items() if target == token]
        size = sum(sizes[member] for member in members)
        total = torch.zeros_like(states[token])
        for member in members:
            total = total + sizes[member] * states[member]
        new_states.append(total / size)
        new_sizes.append(size)
    return torch.stack(new_states), new_sizes, order


# CDPruner


def slow_cdpruner(tower: Tower, relevance: Tensor, count: int) -> Tokens:
    """CDPruner: `count` patches that are relevant (n,) and, projected, unlike each other; raster order."""
    with torch.no_grad():
        embeds = tower.project(_patches(tower, tower.hidden[-2])).float()
        chosen = determinantal_choice(embeds, stretched_relevance(relevance), count)
        return embeds[chosen], chosen


def stretched_relevance(relevance: Tensor) -> Tensor:
    """Relevance (n,) stretched to 0..1 over the picture, the least relevant a little above 0."""
    low, high = relevance.float().min(), relevance.float().max()
    if float(low) == float(high):
        return torch.ones_like(relevance, dtype=torch.float32)
    return (relevance.float() - low + 1e-6) / (high - low)


def determinantal_choice(embeds: Tensor, weights: Tensor, count: int) -> list[int]:
    """Greedy choice of the largest determinant of L, L_ij = w_i * cosine_ij * w_j; ascending.

    embeds (n, D), weights (n,). The weights of the chosen ones cancel in L_ii - L_iY inv(L_YY) L_Yi: what is left is
    w_i ** 2 times the squared length of the part of i's unit vector that is at right angles to all chosen vectors.
    So no matrix is inverted, and patches in the chosen ones' span do no harm.
    """
    # Double precision: otherwise rounding would order what is nearly explained by weights that differ by 1e6.
    rests = embeds.double()
    rests = rests / rests.norm(dim=1, keepdim=True).clamp(min=1e-12)
    weights = weights.double()
    total = len(rests)
    chosen: list[int] = []
    while len(chosen) < min(count, total):
        lengths = (rests**2).sum(dim=1)
        # Ambiguous: what is fully explained is so but for rounding; such patches are all equal, the lower ones win.
        lengths = torch.where(lengths < 1e-12, torch.zeros_like(lengths), lengths)
        best = _best(weights**2 * lengths, _others(chosen, total), 1)[0]
        if float(lengths[best]) > 0:
            direction = rests[best] / rests[best].norm()
            rests = torch.stack([rest - (rest @ direction) * direction for rest in rests])
        chosen.append(best)
    return sorted(chosen)


def cdpruner_relevance(
    states: Tensor, post_norm: Callable[[Tensor], Tensor], projection: Callable[[Tensor], Tensor], texts: Tensor
) -> Tensor:
    """Relevance (m,) of patches: minus their cosine with the text's segments, on average.

    states (m, channels) of hidden[-2], without [CLS]; post_norm and projection lead to (m, D); texts (segments, D).
    """
    with torch.no_grad():
        images, segments = _unit(projection(post_norm(states.float()))), _unit(texts)
        values = []
        for image in images:
            cosines = [-float(image.dot(segment)) for segment in segments]
            values.append(sum(cosines) / len(cosines))
        return torch.tensor(values)


# STAR


def slow_star(tower: Tower, count: int) -> Tokens:
    """STAR's first part: the `count` patches that receive most attention from all 1 + n tokens; raster order."""
    with torch.no_grad():
        received = _patches(tower, attention(tower, -2).mean(dim=(0, 1)))
        kept = sorted(_best(received, list(range(len(received))), count))
        states = _patches(tower, tower.hidden[-2])
        return _project(tower, [states[patch] for patch in kept]), kept


# ViTCoP


def slow_vitcop(tower: Tower, count: int, clusters: int) -> tuple[Tensor, list[int], list[int]]:
    """ViTCoP's first part: the `count` patches that [CLS] attends to most, raster order, and the cluster of each.

    -> features (m, D), places, labels; the last two have m entries.
    """
    with torch.no_grad():
        received = _cls_row(tower, -2).sum(dim=0)
        kept = sorted(_best(received, list(range(len(received))), count))
        keys = _patches(tower, joined_heads(tower.k[-2]))  # (n, heads * head_dim)
        cells = _cells(tower)
        labels = peak_labels(keys[kept], [cells[patch] for patch in kept], tower.side, clusters)
        states = _patches(tower, tower.hidden[-2])
        return _project(tower, [states[patch] for patch in kept]), kept, labels


def peak_labels(keys: Tensor, patches: list[int], side: int, clusters: int) -> list[int]:
    """The cluster of each patch, by density peaks on keys (m, width); patches (m entries) ascend.

    At most `clusters` clusters, numbered by the raster order of their centres. "Token" is an index into patches.
    """
    tokens = range(len(keys))
    distances = [[float((one - other).norm()) for other in keys] for one in keys]
    densities = [sum(math.exp(-((distance / 8) ** 2)) for distance in line) for line in distances]
    parents = [peak_parent(token, distances[token], densities, patches, side) for token in tokens]
    peaks = []
    for token, parent in enumerate(parents):
        delta = math.inf if parent is None else distances[token][parent]
        peaks.append(densities[token] * delta)
    centres = sorted(_best(torch.tensor(peaks, dtype=torch.float64), list(tokens), clusters))
    label_of = {centre: label for label, centre in enumerate(centres)}
    for token in sorted(tokens, key=lambda token: (-densities[token], token)):
        if token in label_of:
            continue
        parent = parents[token]
        if parent is None:
            parent = min(centres, key=lambda centre, token=token: (distances[token][centre], centre))
        label_of[token] = label_of[parent]  # a parent is denser, so that it has its label by now
    return [label_of[token] for token in tokens]


def peak_parent(
    token: int, distances: list[float], densities: list[float], patches: list[int], side: int
) -> int | None:
    """The nearest by key among the denser tokens that are near in the picture; None if there is none.

    distances: from this token to all. Of equally dense tokens the lower one is the denser.
    """
    denser = [other for other in range(len(densities)) if (-densities[other], other) < (-densities[token], token)]
    near = [other for other in denser if near_in_grid(patches[token], patches[other], side)]
    return min(near, key=lambda other: (distances[other], other), default=None)


def near_in_grid(patch: int, other: int, side: int) -> bool:
    """Whether two patches are at most .6 apart in a picture where a whole row of patches is 1 long."""
    rows, columns = patch // side - other // side, patch % side - other % side
    # In whole numbers, (5 d) ** 2 <= (3 side) ** 2, so that a distance of exactly .6 is near whatever the side.
    return 25 * (rows**2 + columns**2) <= 9 * side**2
