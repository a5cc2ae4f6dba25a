"""Slow, plain PDrop, FEATHER, SparseVLM and DART on top of slow_llama, for one row at a time.

Words and shapes are those of slow_methods: a "slot" is an index into the row's input_ids, lists of slots ascend,
the row may be longer than its prompt, and every function returns a SlowResult.

Common to all methods: only visual slots of the prompt compete, and the prompt's last token never does. "Text" is what
stands in the prompt behind the last of them. Of equal values the lower slot wins. A count may exceed what is there;
then everything stays. "After K layers" means that layers[0] .. layers[K - 1] have run. The rules that choose tokens are
functions without an underscore, which need no model.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from .slow_llama import (
    Model,
    attention_row,
    input_norm,
    layer_count,
    linear,
    read_logits,
    rms_norm,
    rotate,
    run_layer,
    split_heads,
    text_config,
)
from .slow_methods import (
    Group,
    Positions,
    Row,
    SlowResult,
    _best,
    _candidate_slots,
    _cosine,
    _mean,
    _members,
    _new_row,
    _present_slots,
    _record,
    _renumber,
    _score,
)
from .slow_ours import cluster_count, ranked_count
from .slow_plus import corrected

Version = Literal["1.5", "plus", "first"]


def slow_pdrop(
    model: Model,
    embeds: Tensor,
    visual: Tensor,
    prompt_len: int,
    *,
    layers: tuple[int, ...],
    counts: tuple[int, ...],
    positions: Positions = "renumbered",
) -> SlowResult:
    """PDrop on embeds (tokens, hidden) with visual (tokens,) bool.

    layers: how many layers have run when a stage acts. After r layers, layers[r] scores its own coming input: the
    last prompt token's row of its attention map, at the positions the row has by then.
    counts: visual tokens kept per stage.
    positions: "renumbered" gives present slots 0..n-1 after every stage, text and later tokens included.
    """
    _check_stages(layers, len(counts), layer_count(model) - 1)
    with torch.no_grad():
        row = _new_row(embeds, _candidate_slots(visual, prompt_len))
        result = SlowResult(logits=torch.empty(0))
        for layer_index in range(layer_count(model)):
            if layer_index in layers:
                scores = _score(model, layer_index, row.states, row, prompt_len, "all", True)
                kept = _best(scores, counts[layers.index(layer_index)])
                _keep_only(row, kept)
                if positions == "renumbered":
                    _renumber(row)
                _record(result, row, scores, kept, [])
            result.present.append(_present_slots(row))
            row.states = run_layer(model, layer_index, row.states, row.positions, row.present)
        result.logits = read_logits(model, row.states)
        return result


def slow_feather(
    model: Model,
    embeds: Tensor,
    visual: Tensor,
    prompt_len: int,
    *,
    after: tuple[int, ...] = (8, 16),
    counts: tuple[int, ...],
    grid: set[int],
) -> SlowResult:
    """FEATHER on embeds (tokens, hidden) with visual (tokens,) bool; positions stay.

    after: how many layers have run when a stage acts. After K layers the score is the last prompt token's row over
    the visual slots that are still there, from the input, norm, queries and keys of layers[K - 1], without RoPE.
    counts: visual tokens kept per stage.
    grid: visual slots that the first stage protects; later stages protect none.
    """
    _check_stages(after, len(counts), layer_count(model))
    with torch.no_grad():
        row = _new_row(embeds, _candidate_slots(visual, prompt_len))
        result = SlowResult(logits=torch.empty(0))
        for layer_index in range(layer_count(model)):
            result.present.append(_present_slots(row))
            layer_input = row.states
            row.states = run_layer(model, layer_index, row.states, row.positions, row.present)
            if layer_index + 1 in after:
                stage = after.index(layer_index + 1)
                scores = _score(model, layer_index, layer_input, row, prompt_len, "visual", False)
                kept = protected_choice(scores, grid if stage == 0 else set(), counts[stage])
                _keep_only(row, kept)
                _record(result, row, scores, kept, [])
        result.logits = read_logits(model, row.states)
        return result


def slow_sparsevlm(
    model: Model,
    embeds: Tensor,
    visual: Tensor,
    prompt_len: int,
    *,
    after: tuple[int, ...] = (3, 7, 16),
    counts: tuple[tuple[int, int], ...],
    version: Version = "1.5",
    itself: bool = True,
    scale: float = 13.5,
    bias: float = 0.0,
) -> SlowResult:
    """SparseVLM on embeds (tokens, hidden) with visual (tokens,) bool.

    after: how many layers have run when a stage acts. After K layers the score is the mean of the text raters' rows
    of the attention map of layers[K - 1].
    counts: per stage, (visual tokens kept, merged tokens made of the best dropped ones). Every stage drops at
    least one visual token where there are two or more, and keeps at least one.
    version: "1.5" merges and gives present slots 0..n-1 after every stage; "plus" does neither, so that its second
    counts are ignored, and rates by `corrected`.
        "first" is "1.5", but keeps no more than `ranked_count`, and makes as many merged tokens as `cluster_count`
        says of what that drops; the second counts are ignored.
    itself: whether a token is one of its own neighbours in the density of "1.5".

    After a stage of "1.5" the visible slots are the kept ones (result.kept) and the clusters' centres
    (result.anchors). Their contents move: first what was kept, in order, then the merged tokens, by ascending centre.
    A slot named at a later stage means whatever it holds by then.
    """
    _check_stages(after, len(counts), layer_count(model))
    with torch.no_grad():
        row = _new_row(embeds, _candidate_slots(visual, prompt_len))
        raters = _rater_slots(row, prompt_len)
        result = SlowResult(logits=torch.empty(0))
        for layer_index in range(layer_count(model)):
            result.present.append(_present_slots(row))
            layer_input = row.states
            row.states = run_layer(model, layer_index, row.states, row.positions, row.present)
            if layer_index + 1 in after:
                keep, clusters = counts[after.index(layer_index + 1)]
                rate = corrected if version == "plus" else _rated
                scores = rate(model, layer_index, layer_input, row, raters)
                paid = _paid(model, layer_index, layer_input, row, raters)
                most = ranked_count(paid, scale, bias) if version == "first" else len(scores) - 1
                kept = _best(scores, max(1, min(keep, most)))
                groups: list[Group] = []
                if version == "first":
                    clusters = cluster_count(len(scores) - len(kept))
                if version != "plus" and clusters:
                    groups = _make_clusters(row.states, recycled_slots(scores, kept), clusters, itself)
                row.states = merged_last(row.states, kept, groups)
                _keep_only(row, sorted(kept + [group.anchor for group in groups]))
                if version != "plus":
                    _renumber(row)
                _record(result, row, scores, kept, groups)
        result.logits = read_logits(model, row.states)
        return result


def slow_dart(
    model: Model, embeds: Tensor, visual: Tensor, prompt_len: int, *, after: int = 2, keep: int, pivots: int = 4
) -> SlowResult:
    """DART: after `after` layers, pivots and what is least like them stay, `keep` visual tokens, at old positions.

    embeds (tokens, hidden), visual (tokens,) bool. Pivots have the largest keys (L1) in layers[after - 1]; how
    alike two tokens are is the cosine of its outputs behind the model's final norm. result.scores are the L1
    norms of the candidates' keys.
    """
    _check_stages((after,), 1, layer_count(model))
    with torch.no_grad():
        row = _new_row(embeds, _candidate_slots(visual, prompt_len))
        result = SlowResult(logits=torch.empty(0))
        for layer_index in range(layer_count(model)):
            result.present.append(_present_slots(row))
            layer_input = row.states
            row.states = run_layer(model, layer_index, row.states, row.positions, row.present)
            if layer_index == after - 1:
                norms = _key_norms(model, layer_index, layer_input, row.positions)
                features = _final_norm(model, row.states)
                text = _text_slots(row.candidates, prompt_len)
                kept = dart_choice(norms, features, row.candidates, text, keep, pivots)
                scores = {slot: norms[slot] for slot in row.candidates}
                _keep_only(row, kept)
                _record(result, row, scores, kept, [])
        result.logits = read_logits(model, row.states)
        return result


def _check_stages(after: tuple[int, ...], count_entries: int, most: int) -> None:
    """Refuse schedules without a meaning: stages rise within 1..most, one entry of the counts for each."""
    if not after or list(after) != sorted(set(after)) or after[0] < 1 or after[-1] > most:
        raise ValueError(f"stages must rise within 1..{most}, not {after}")
    if count_entries != len(after):
        raise ValueError(f"{len(after)} stages need as many counts, not {count_entries}")


def _keep_only(row: Row, slots: list[int]) -> None:
    """Of the candidates only `slots` stay, for good; they compete at the next stage."""
    for slot in row.candidates:
        row.present[slot] = slot in slots
    row.candidates = slots


def _text_slots(candidates: list[int], prompt_len: int) -> list[int]:
    """The prompt's slots behind its last candidate; the last slot is always among them."""
    first = candidates[-1] + 1 if candidates else 0
    return list(range(first, prompt_len))


# FEATHER


def protected_choice(scores: dict[int, float], grid: set[int], count: int) -> list[int]:
    """`count` of the scored slots, ascending: those of the grid first, the best others in the room left.

    A grid larger than `count` is cut to its best slots. Grid slots without a score do not count.
    """
    protected = {slot: scores[slot] for slot in scores if slot in grid}
    others = {slot: scores[slot] for slot in scores if slot not in grid}
    chosen = _best(protected, count)
    return sorted(chosen + _best(others, count - len(chosen)))


# SparseVLM


def choose_raters(visual: Tensor, text: Tensor) -> list[int]:
    """Which text tokens rate: visual (v, hidden), text (t, hidden), both input embeddings -> indices into text.

    Every visual token spreads a share of 1 over the text, by softmax of its dot products. Raters get more than the
    average text token. If all get the same, all rate.
    """
    spread = torch.softmax(visual @ text.T, dim=-1)  # (v, t), every row sums to 1
    shares = spread.mean(dim=0)  # (t,)
    average = float(shares.mean())
    raters = [number for number in range(len(text)) if float(shares[number]) > average]
    return raters or list(range(len(text)))


def recycled_slots(scores: dict[int, float], kept: list[int]) -> list[int]:
    """Of the scored slots that were not kept, the best three in ten, plus one; ascending."""
    dropped = {slot: scores[slot] for slot in scores if slot not in kept}
    return _best(dropped, int(0.3 * len(dropped)) + 1)


def density_peaks(features: Tensor, count: int, itself: bool = True) -> dict[int, int]:
    """Cluster features (n, channels) around min(count, n) of them -> index of every token -> index of its centre.

    A centre has many close tokens around it (density) and is far from any denser token (delta); centres are the
    tokens with the largest product of the two. Every other token goes to its nearest centre. Of equally dense
    tokens the lower index counts as the denser one.
    """
    tokens = range(len(features))
    distances = _distances(features)
    densities = [_density(distances[token], token, count, itself) for token in tokens]
    deltas = [_delta(distances, densities, token) for token in tokens]
    centres = _best({token: densities[token] * deltas[token] for token in tokens}, count)
    centre_of = {}
    for token in tokens:
        nearest = min(centres, key=lambda centre: (distances[token][centre], centre))
        centre_of[token] = token if token in centres else nearest
    return centre_of


def _distances(features: Tensor) -> list[list[float]]:
    """Euclidean distance of every two tokens over the root of the channels; features (n, channels)."""
    root = math.sqrt(features.shape[1])
    return [[float((one - other).norm()) / root for other in features] for one in features]


def _density(distances: list[float], token: int, count: int, itself: bool) -> float:
    """exp(-mean of the squared distances to the `count` nearest tokens), from one token's distances to all."""
    near = sorted(distances[other] for other in range(len(distances)) if itself or other != token)[:count]
    if not near:
        return 1.0  # a token alone
    return math.exp(-sum(distance**2 for distance in near) / len(near))


def _delta(distances: list[list[float]], densities: list[float], token: int) -> float:
    """Distance from one token to the nearest denser one; for the densest, the largest distance of any two."""
    denser = [other for other in range(len(densities)) if (-densities[other], other) < (-densities[token], token)]
    if not denser:
        return max(max(line) for line in distances)
    return min(distances[token][other] for other in denser)


def merged_last(states: Tensor, kept: list[int], groups: list[Group]) -> Tensor:
    """Fill the slots of kept and anchors, ascending, with the kept states first and the merged tokens behind.

    states (tokens, hidden), kept and the groups' anchors ascending -> new states, same shape.
    """
    slots = sorted(kept + [group.anchor for group in groups])
    contents = [states[slot] for slot in kept] + [group.merged for group in groups]
    new_states = states.clone()
    for slot, content in zip(slots, contents, strict=True):
        new_states[slot] = content
    return new_states


def _make_clusters(states: Tensor, slots: list[int], count: int, itself: bool) -> list[Group]:
    """Density-peak clusters of some slots of states (tokens, hidden), by ascending centre; at most `count`."""
    if not slots or count == 0:
        return []
    centre_of = density_peaks(torch.stack([states[slot] for slot in slots]), count, itself)
    groups = []
    for centre in sorted(set(centre_of.values())):
        members = [slots[number] for number in _members(centre_of, centre)]
        groups.append(Group(slots[centre], members, {}, _mean(states, members)))
    return groups


def _rater_slots(row: Row, prompt_len: int) -> list[int]:
    """The slots of the text raters, chosen on the row's input embeddings."""
    text = _text_slots(row.candidates, prompt_len)
    if not row.candidates:
        return text  # nothing to rate
    return [text[number] for number in choose_raters(row.states[row.candidates], row.states[text])]


def _rated(model: Model, layer_index: int, states: Tensor, row: Row, raters: list[int]) -> dict[int, float]:
    """Candidate slot -> mean attention the raters pay to it in one layer, whose input is states (tokens, hidden)."""
    paid = _paid(model, layer_index, states, row, raters)
    return {slot: sum(one[slot] for one in paid) / len(raters) for slot in row.candidates}


def _paid(model: Model, layer_index: int, states: Tensor, row: Row, raters: list[int]) -> list[dict[int, float]]:
    """The same of each rater."""
    paid = []
    for rater in raters:
        keys = [slot for slot in _present_slots(row) if slot <= rater]
        attention = attention_row(model, layer_index, states, row.positions, rater, keys)
        paid.append({slot: float(attention[slot]) for slot in row.candidates})
    return paid


# DART


def dart_choice(
    norms: list[float], features: Tensor, visual: list[int], text: list[int], keep: int, pivots: int
) -> list[int]:
    """The min(keep, len(visual)) visual slots that stay, ascending.

    norms: per slot, the size of its key. features (tokens, hidden). The `pivots` largest visual slots stay. They, then
    the `pivots` largest text slots, in turn add the visual slots left that are least like them: all pivots add equally
    many, the first ones one more if that does not come out even. Their turns come as a copy of a Python set of the
    slots is walked through (official: `for item in list(tmp_set)`), not by size.
    """
    keep = min(keep, len(visual))
    visual_pivots = _largest(norms, visual, min(pivots, keep))
    every_pivot = visual_pivots + _largest(norms, text, pivots)
    kept = list(visual_pivots)
    if keep == len(kept):
        return sorted(kept)
    share, remainder = divmod(keep - len(kept), len(every_pivot))
    turns = set()
    for slot in every_pivot:
        turns.add(slot)
    for number, pivot in enumerate(list(turns.copy())):
        left = [slot for slot in visual if slot not in kept]
        kept += _least_alike(features, pivot, left, share + 1 if number < remainder else share)
    return sorted(kept)


def _largest(norms: list[float], slots: list[int], count: int) -> list[int]:
    """The `count` slots of the largest norms, in descending order of their norms."""
    return sorted(slots, key=lambda slot: (-norms[slot], slot))[:count]


def _least_alike(features: Tensor, pivot: int, slots: list[int], count: int) -> list[int]:
    """The `count` slots of the lowest cosine to the pivot, in ascending order of it; features (tokens, hidden)."""
    return sorted(slots, key=lambda slot: (_cosine(features[pivot], features[slot]), slot))[:count]


def _key_norms(model: Model, layer_index: int, states: Tensor, positions: Tensor) -> list[float]:
    """Per slot, the sum of absolute values over all its keys, with RoPE; states (tokens, hidden) enter the layer."""
    config = text_config(model)
    projection = model.model.language_model.layers[layer_index].self_attn.k_proj
    keys = split_heads(linear(input_norm(model, layer_index, states), projection), config.head_dim)
    keys = rotate(keys, positions, config)  # (kv_heads, tokens, head_dim)
    return [float(keys[:, slot].abs().sum()) for slot in range(len(states))]


def _final_norm(model: Model, states: Tensor) -> Tensor:
    """states (tokens, hidden) through the norm in front of lm_head -> (tokens, hidden)."""
    return rms_norm(states, model.model.language_model.norm.weight, text_config(model).rms_norm_eps)
