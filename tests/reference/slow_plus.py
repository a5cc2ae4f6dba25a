"""How SparseVLM's v2 rates: attention without what RoPE alone gives, from the heads that look at the image most.

Written from the description of the official code (`methods.md`, section 5): post-softmax attention is divided by the
matrix R = A A^T / sqrt(d), A being vectors of ones turned by the positions, and only the heads whose raters pay most
to the visual tokens, in all, are averaged: 14 of 32, here as many of the model's heads, rounded, at least one.
"""

import math

import torch
from torch import Tensor

from .slow_llama import Model, input_norm, inverse_frequencies, queries_and_keys, text_config
from .slow_methods import Row, _present_slots


def gravity(distance: float, frequencies: list[float]) -> float:
    """The product of two vectors of ones, turned by positions this far apart, over the root of their length.

    A pair of entries (1, 1) is (cos a - sin a, cos a + sin a) when turned by a; two of these make 2 cos(a - b).
    """
    return 2 * sum(math.cos(distance * one) for one in frequencies) / math.sqrt(2 * len(frequencies))


def busiest(spent: list[float], heads: int) -> list[int]:
    """The heads of the largest sums, ascending."""
    count = max(round(heads * 14 / 32), 1)
    return sorted(sorted(range(heads), key=lambda head: (-spent[head], head))[:count])


def corrected(model: Model, layer_index: int, states: Tensor, row: Row, raters: list[int]) -> dict[int, float]:
    """Candidate slot -> what the raters pay to it in one layer, whose input is states (tokens, hidden)."""
    config = text_config(model)
    frequencies = [float(one) for one in inverse_frequencies(config)]
    normed = input_norm(model, layer_index, states)
    queries, keys = queries_and_keys(model, layer_index, normed, row.positions, True)
    heads = queries.shape[0]
    paid: list[list[dict[int, float]]] = [[] for _ in range(heads)]  # a head, a rater, a slot
    for head in range(heads):
        for rater in raters:
            seen = [slot for slot in _present_slots(row) if slot <= rater]
            logits = [float(keys[head, slot] @ queries[head, rater]) / math.sqrt(config.head_dim) for slot in seen]
            shares = dict(zip(seen, torch.softmax(torch.tensor(logits), 0).tolist(), strict=True))
            apart = {slot: float(row.positions[rater] - row.positions[slot]) for slot in row.candidates}
            paid[head].append({slot: shares[slot] / gravity(apart[slot], frequencies) for slot in row.candidates})
    spent = [sum(one[slot] for one in paid[head] for slot in row.candidates) for head in range(heads)]
    chosen = busiest(spent, heads)
    return {
        slot: sum(one[slot] for head in chosen for one in paid[head]) / (len(chosen) * len(raters))
        for slot in row.candidates
    }
