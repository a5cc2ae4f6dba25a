"""Slow, plain TopV, GreedyPrune, IVC-Prune and the second parts of STAR and ViTCoP, for one row at a time.

Words, shapes and the rule for ties are those of slow_field: slots ascend, "after K layers" means that layers[0] ..
layers[K - 1] have run, only visual slots of the prompt compete, the prompt's last token never does, and the text is
what stands in the prompt behind the last candidate.

The rules that choose tokens are functions without an underscore, which need no model. Their "tokens" are indices into
the row's candidates, unless they speak of slots.
"""

import fractions
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .slow_field import _check_stages, _keep_only, _rated, _text_slots
from .slow_llama import (
    Model,
    input_norm,
    inverse_frequencies,
    layer_count,
    linear,
    read_logits,
    run_layer,
    split_heads,
    text_config,
)
from .slow_methods import (
    Group,
    Row,
    SlowResult,
    _best,
    _candidate_slots,
    _cosine,
    _mean,
    _new_row,
    _present_slots,
    _record,
    _renumber,
)
from .slow_prelm import _cosines

# (image, tile, row, column) of a visual token; None for one that has no place in a grid, like a newline.
Cell = tuple[int, int, int, int] | None
# The states that entered the layer just run, and the row as it left that layer -> every candidate's score, the kept.
Choose = Callable[[Tensor, Row], tuple[dict[int, float], list[int]]]


def slow_topv(
    model: Model, embeds: Tensor, visual: Tensor, prompt_len: int, *, after: int = 2, count: int, cells: list[Cell]
) -> SlowResult:
    """TopV on embeds (tokens, hidden) with visual (tokens,) bool; positions stay.

    cells: one entry per slot; those of slots that are no candidates are not read.
    """

    def choose(layer_input: Tensor, row: Row) -> tuple[dict[int, float], list[int]]:
        slots = row.candidates
        cost = topv_cost(layer_input[slots], row.states[slots], [cells[slot] for slot in slots])
        importance = sinkhorn(cost).sum(dim=1).tolist()
        kept = [slots[token] for token in topv_choice(importance, count)]
        return dict(zip(slots, importance, strict=True)), kept

    return _cut(model, embeds, visual, prompt_len, after, choose)


def slow_greedyprune(
    model: Model, embeds: Tensor, visual: Tensor, prompt_len: int, *, after: int = 2, count: int, tau: float = 0.9
) -> SlowResult:
    """GreedyPrune on embeds (tokens, hidden) with visual (tokens,) bool; positions stay."""

    def choose(layer_input: Tensor, row: Row) -> tuple[dict[int, float], list[int]]:
        slots, last = row.candidates, row.states[prompt_len - 1]
        saliency = [_cosine(row.states[slot], last) for slot in slots]
        likeness = centred_likeness(row.states[slots])
        kept = [slots[token] for token in greedy_choice(saliency, likeness, count, tau)]
        return dict(zip(slots, saliency, strict=True)), kept

    return _cut(model, embeds, visual, prompt_len, after, choose)


def slow_ivcprune(
    model: Model,
    embeds: Tensor,
    visual: Tensor,
    prompt_len: int,
    *,
    after: int = 16,
    count: int,
    coordinates: float = 0.1,
    seeds: float = 0.01,
) -> SlowResult:
    """IVC-Prune on embeds (tokens, hidden) with visual (tokens,) bool; positions stay. Scores: foreground.

    coordinates: share of the visual tokens that are kept for their positions, half for the cosine, half for the sine.
    seeds: share of them that joins the text in rating.

    The slots behind the prompt find the kept visual tokens only in every layer, the prompt's own slots find all of
    them in the first `after` layers. result.present speaks of the prompt's slots.
    """
    _check_stages((after,), 1, layer_count(model))
    with torch.no_grad():
        row = _new_row(embeds, _candidate_slots(visual, prompt_len))
        foreground: dict[int, float] = {}
        kept: list[int] = []
        if row.candidates:
            weights = _value_weights(model, after - 1, _input_of(model, after - 1, embeds[:prompt_len]))
            total = len(row.candidates)
            raters = ivc_raters(_text_slots(row.candidates, prompt_len))
            seed_slots, foreground = ivc_foreground(weights, row.candidates, raters, max(1, round(seeds * total)))
            frequencies = inverse_frequencies(text_config(model))
            marks = coordinate_slots(row.candidates, frequencies, round(coordinates / 2 * total))
            kept = ivc_choice(foreground, seed_slots, marks, count)
        left = [slot in kept or slot not in row.candidates for slot in range(len(embeds))]
        result = SlowResult(logits=torch.empty(0))
        for layer_index in range(layer_count(model)):
            result.present.append(_present_slots(row))
            layer_input = row.states
            row.states = run_layer(model, layer_index, layer_input, row.positions, row.present)
            if layer_index < after:
                # Later tokens come when the cache is cut already: for them the layer runs without the dropped slots.
                later = run_layer(model, layer_index, layer_input, row.positions, left)
                row.states = torch.cat([row.states[:prompt_len], later[prompt_len:]])
            if layer_index == after - 1:
                _keep_only(row, kept)
                _record(result, row, foreground, kept, [])
        result.logits = read_logits(model, row.states)
        return result


def slow_star_cut(
    model: Model,
    embeds: Tensor,
    visual: Tensor,
    prompt_len: int,
    *,
    after: int,
    count: int,
    positions: Tensor | None = None,
) -> SlowResult:
    """STAR's second part on embeds (tokens, hidden) with visual (tokens,) bool; positions stay.

    positions: (tokens,), of all slots, because STAR's first part leaves gaps; 0, 1, 2, ... if None.
    """

    def choose(layer_input: Tensor, row: Row) -> tuple[dict[int, float], list[int]]:
        scores = _rated(model, after - 1, layer_input, row, _text_slots(row.candidates, prompt_len))
        return scores, _best(scores, count)

    return _cut(model, embeds, visual, prompt_len, after, choose, positions)


def slow_vitcop_cuts(
    model: Model,
    embeds: Tensor,
    visual: Tensor,
    prompt_len: int,
    *,
    after: tuple[int, int] = (2, 22),
    shallow: int,
    deep: int,
    labels: dict[int, int],
) -> SlowResult:
    """ViTCoP's second part on embeds (tokens, hidden) with visual (tokens,) bool. Scores: norms, small ones stay.

    shallow: visual tokens left by the first stage, merged ones included; it keeps positions.
    deep: visual tokens left by the second stage, which leaves every present slot, text and later tokens included, its
    place among those that were present before it.
    labels: every candidate slot -> its cluster.
    """
    _check_stages(after, 2, layer_count(model))
    with torch.no_grad():
        row = _new_row(embeds, _candidate_slots(visual, prompt_len))
        if not set(row.candidates) <= set(labels):
            raise ValueError("every visual slot of the prompt needs a label")
        result = SlowResult(logits=torch.empty(0))
        for layer_index in range(layer_count(model)):
            result.present.append(_present_slots(row))
            layer_input = row.states
            row.states = run_layer(model, layer_index, layer_input, row.positions, row.present)
            if layer_index + 1 in after:
                norms = _mean_key_norms(model, layer_index, layer_input, row.candidates)
                groups: list[Group] = []
                if layer_index + 1 == after[0]:
                    kept, merging = cluster_choice(norms, labels, shallow)
                    groups = [_middle_group(row.states, members) for members in merging]
                    groups.sort(key=lambda group: group.anchor)
                else:
                    kept = smallest(norms, deep)
                row.states = row.states.clone()
                for group in groups:
                    row.states[group.anchor] = group.merged
                if layer_index + 1 == after[1]:
                    _renumber(row)
                _keep_only(row, sorted(kept + [group.anchor for group in groups]))
                _record(result, row, norms, kept, groups)
        result.logits = read_logits(model, row.states)
        return result


def _cut(
    model: Model,
    embeds: Tensor,
    visual: Tensor,
    prompt_len: int,
    after: int,
    choose: Choose,
    positions: Tensor | None = None,
) -> SlowResult:
    """One stage after `after` layers, at old positions; choose is asked only where there are candidates."""
    _check_stages((after,), 1, layer_count(model))
    with torch.no_grad():
        row = _new_row(embeds, _candidate_slots(visual, prompt_len))
        if positions is not None:
            row.positions = positions.float()
        result = SlowResult(logits=torch.empty(0))
        for layer_index in range(layer_count(model)):
            result.present.append(_present_slots(row))
            layer_input = row.states
            row.states = run_layer(model, layer_index, layer_input, row.positions, row.present)
            if layer_index == after - 1:
                scores, kept = choose(layer_input, row) if row.candidates else ({}, [])
                _keep_only(row, kept)
                _record(result, row, scores, kept, [])
        result.logits = read_logits(model, row.states)
        return result


# TopV


def topv_cost(inputs: Tensor, outputs: Tensor, cells: list[Cell]) -> Tensor:
    """Cost (n, n) of bringing token i's input to token j's output; inputs, outputs (n, hidden), cells n entries."""
    feature = torch.stack([((one - outputs) ** 2).sum(dim=1) for one in inputs])
    spatial = torch.zeros(len(cells), len(cells))
    for one in range(len(cells)):
        for other in range(len(cells)):
            spatial[one, other] = 0.0 if one == other else grid_cost(cells[one], cells[other])
    central = torch.tensor(central_costs(cells))
    return stretched(feature) + stretched(spatial) + 0.01 * stretched(central)[:, None]


def grid_cost(cell: Cell, other: Cell) -> float:
    """How far two different tokens are apart in their tile, 0..1; 1 if they share none."""
    if cell is None or other is None or cell[:2] != other[:2]:
        return 1.0
    squared = (cell[2] - other[2]) ** 2 + (cell[3] - other[3]) ** 2
    return 1 - math.exp(-squared / (2 * 10**2))


def central_costs(cells: list[Cell]) -> list[float]:
    """How far each token is from the middle of its tile; one without a place is as far as the farthest."""
    costs: list[float | None] = []
    for cell in cells:
        if cell is None:
            costs.append(None)
            continue
        mates = [mate for mate in cells if mate is not None and mate[:2] == cell[:2]]
        middle = (max(mate[2] for mate in mates) / 2, max(mate[3] for mate in mates) / 2)
        costs.append(math.dist(cell[2:], middle))
    farthest = max((cost for cost in costs if cost is not None), default=0.0)
    return [farthest if cost is None else cost for cost in costs]


def stretched(table: Tensor) -> Tensor:
    """A table of any shape, moved and scaled to 0..1; zeros if all of it is equal."""
    low, high = table.min(), table.max()
    if float(low) == float(high):
        return torch.zeros_like(table)
    return (table - low) / (high - low)


def sinkhorn(cost: Tensor, regularisation: float = 0.1, iterations: int = 3) -> Tensor:
    """Transport plan (n, n) between uniform weights 1/n; cost (n, n). Every iteration fits the rows, then the columns.

    In logarithms; because the columns come last, only their sums are exactly 1/n.
    """
    plan = -cost.float() / regularisation
    share = -math.log(len(cost))
    for _ in range(iterations):
        plan = plan - torch.logsumexp(plan, dim=1, keepdim=True) + share
        plan = plan - torch.logsumexp(plan, dim=0, keepdim=True) + share
    return plan.exp()


def topv_choice(importance: list[float], count: int) -> list[int]:
    """`count` tokens, ascending: the most important ones, and of the others every so-manieth."""
    scores = dict(enumerate(importance))
    if count < 2 or count >= len(scores):
        # Ambiguous: a single token leaves no room for one that is taken by its place; it is the most important one.
        return _best(scores, max(0, count))
    best, step = recovery_plan(len(scores), count)
    kept = _best(scores, best)
    kept += [token for token in scores if token not in kept][::step]
    # Never short by the plan; the prose fills up all the same.
    others = {token: scores[token] for token in scores if token not in kept}
    return sorted(kept + _best(others, count - len(kept)))


def recovery_plan(total: int, count: int) -> tuple[int, int]:
    """How many of `total` tokens are kept for their importance, and the step through the others; 2 <= count < total.

    The smallest step from 4 on that leaves at least a sixth of the count to the important ones.
    """
    step = 4
    while True:
        fitting = [best for best in range(1, count + 1) if best + math.ceil((total - best) / step) <= count]
        if fitting and max(fitting) >= count / 6:
            return max(fitting), step
        step += 1  # ends: with a step of total, count - 1 and one other fit


# GreedyPrune


def centred_likeness(states: Tensor) -> Tensor:
    """Cosine of every two states (n, hidden) when their mean is the origin -> (n, n); 0 for a state at the origin."""
    return _cosines(states - states.mean(dim=0))


def greedy_choice(saliency: list[float], likeness: Tensor, count: int, tau: float) -> list[int]:
    """`count` tokens, ascending: by saliency (n entries), at first without those too much like a taken one (n, n)."""
    ranked = sorted(range(len(saliency)), key=lambda token: (-saliency[token], token))
    taken: list[int] = []
    for token in ranked:
        if len(taken) < count and all(float(likeness[token, other]) <= tau for other in taken):
            taken.append(token)
    rest = [token for token in ranked if token not in taken]
    return sorted(taken + rest[: max(0, count - len(taken))])


# IVC-Prune


def ivc_raters(text: list[int]) -> list[int]:
    """The text slots that rate: without the first two, unless none were left."""
    return text[2:] or text


def ivc_foreground(
    weights: Tensor, visual: list[int], raters: list[int], seed_count: int
) -> tuple[list[int], dict[int, float]]:
    """The seed slots, ascending, and every visual slot's rating by the raters and seeds; weights (tokens, tokens).

    Seeds are the visual slots that the raters rate best.
    """
    by_text = _column_means(weights, raters, visual)
    seeds = _best(by_text, seed_count)
    return seeds, _column_means(weights, seeds + raters, visual)


def _column_means(weights: Tensor, rows: list[int], columns: list[int]) -> dict[int, float]:
    """Column -> mean of weights (tokens, tokens) over the rows."""
    return {column: sum(float(weights[row, column]) for row in rows) / len(rows) for column in columns}


def coordinate_slots(slots: list[int], frequencies: Tensor, each: int) -> list[int]:
    """The slots, ascending, whose positions have the largest mean cosine, and the largest mean sine, `each` of both.

    frequencies (head_dim / 2,). Over head_dim the means are the same, because every frequency stands there twice.
    """
    cosines = {slot: float((slot * frequencies).cos().mean()) for slot in slots}
    sines = {slot: float((slot * frequencies).sin().mean()) for slot in slots}
    return sorted(set(_best(cosines, each)) | set(_best(sines, each)))


def ivc_choice(foreground: dict[int, float], seeds: list[int], coordinates: list[int], count: int) -> list[int]:
    """`count` slots, ascending: coordinate slots first, then seeds, then by foreground.

    Among coordinate slots seeds come first, then the foreground decides; among seeds the foreground does.
    """
    ranked = sorted(foreground, key=lambda slot: (slot not in coordinates, slot not in seeds, -foreground[slot], slot))
    return sorted(ranked[:count])


def _input_of(model: Model, layer_index: int, embeds: Tensor) -> Tensor:
    """What enters a layer when nothing is pruned in front of it; embeds (tokens, hidden) -> same shape."""
    row = _new_row(embeds, [])
    for earlier in range(layer_index):
        row.states = run_layer(model, earlier, row.states, row.positions, row.present)
    return row.states


def _value_weights(model: Model, layer_index: int, states: Tensor) -> Tensor:
    """How alike values are: states (tokens, hidden) -> (tokens, tokens), mean over KV heads of rows that sum to 1."""
    projection = model.model.language_model.layers[layer_index].self_attn.v_proj
    head_dim = text_config(model).head_dim
    values = split_heads(linear(input_norm(model, layer_index, states), projection), head_dim)
    heads = [torch.softmax(value @ value.T / math.sqrt(head_dim), dim=1) for value in values]
    return torch.stack(heads).mean(dim=0)


# ViTCoP


def smallest(norms: dict[int, float], count: int) -> list[int]:
    """The `count` slots of the smallest norms, ascending."""
    return _best({slot: -norm for slot, norm in norms.items()}, count)


def shared_quotas(sizes: list[int], quota: int, sums: list[float]) -> list[int]:
    """Share the quota among clusters in proportion to size - 1, rounded, halves to even; at most size - 1 each.

    Too few: one more for the cluster of the smallest sum of norms (sums), then the next, as often as needed. Too many:
    one less for the largest sum, then the next.
    """
    total = sum(size - 1 for size in sizes)
    if total == 0:
        return [0] * len(sizes)
    quotas = [round(fractions.Fraction(quota * (size - 1), total)) for size in sizes]
    while sum(quotas) < quota:
        for cluster in sorted(range(len(sizes)), key=lambda cluster: (sums[cluster], cluster)):
            if sum(quotas) < quota and quotas[cluster] < sizes[cluster] - 1:
                quotas[cluster] += 1
    while sum(quotas) > quota:
        for cluster in sorted(range(len(sizes)), key=lambda cluster: (-sums[cluster], cluster)):
            if sum(quotas) > quota and quotas[cluster] > 0:
                quotas[cluster] -= 1
    return quotas


def cluster_choice(norms: dict[int, float], labels: dict[int, int], count: int) -> tuple[list[int], list[list[int]]]:
    """The kept slots, ascending, and per label the slots to be merged into one, so that `count` tokens are left.

    norms: slots -> small ones are kept. labels: slot -> cluster; only slots with a norm count.
    """
    # Ambiguous: when all may stay, nothing happens at all; a cluster's last token is not merged with itself.
    if count >= len(norms):
        return sorted(norms), []
    names = sorted({labels[slot] for slot in norms})
    if count < len(names):
        raise ValueError(f"{len(names)} clusters do not fit into {count} tokens")
    clusters = [[slot for slot in sorted(norms) if labels[slot] == name] for name in names]
    sums = [sum(norms[slot] for slot in cluster) for cluster in clusters]
    quotas = shared_quotas([len(cluster) for cluster in clusters], count - len(clusters), sums)
    kept, merging = [], []
    for cluster, quota in zip(clusters, quotas, strict=True):
        staying = smallest({slot: norms[slot] for slot in cluster}, quota)
        kept += staying
        merging.append([slot for slot in cluster if slot not in staying])
    return sorted(kept), merging


def _middle_group(states: Tensor, members: list[int]) -> Group:
    """Merge some slots, ascending, of states (tokens, hidden) into the middle one: itself plus the mean of all."""
    middle = members[len(members) // 2]
    return Group(middle, members, {}, states[middle] + _mean(states, members))


def _mean_key_norms(model: Model, layer_index: int, states: Tensor, slots: list[int]) -> dict[int, float]:
    """Slot -> length of its key, mean over KV heads; states (tokens, hidden) enter the layer.

    Without RoPE, which turns all heads of a token alike and so does not change the length.
    """
    projection = model.model.language_model.layers[layer_index].self_attn.k_proj
    keys = split_heads(linear(input_norm(model, layer_index, states), projection), text_config(model).head_dim)
    return {slot: float(keys[:, slot].mean(dim=0).norm()) for slot in slots}
