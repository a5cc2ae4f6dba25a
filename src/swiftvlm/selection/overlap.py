"""Whom layers rank first, and whom pruned runs still find there (paper, figures 2 and 8)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from swiftvlm.amounts import Number
from swiftvlm.engine import prune
from swiftvlm.selection.measure import Watch, Watching
from swiftvlm.shape import ModelShape
from swiftvlm.trace import Run

BOTTOM, TOP = 0.5, 0.1  # shares of figure 2
TOPS = (0.05, 0.1)  # of figure 8

Order = tuple[int, ...]  # places among the visual tokens, best first


def rankings(model: PreTrainedModel, inputs: dict[str, Any]) -> list[Order]:
    """How each layer ranks one prompt's visual tokens, by its attention from the last prompt token."""
    watches = tuple(Watch(1.0, ordered=True) for _ in range(ModelShape.of(model).layers - 1))
    # Nothing can be cut behind the last layer, so its map is projected before it.
    last = Watch(1.0, probe="next", ordered=True)
    for method in (Watching(watches), Watching((last,))):
        with torch.no_grad(), prune(model, method):
            model(**inputs)
    return [watch.noted[0] for watch in (*watches, last)]


def early_against_late(orders: Sequence[Order]) -> list[list[Number]]:
    """[early][late]: share of the later layer's top tenth that the earlier layer has in its bottom half (figure 2)."""
    table = []
    for i, early in enumerate(orders):
        bottom = set(early[math.ceil(len(early) * (1 - BOTTOM)) :])
        row = [_share(bottom, late, TOP) if j > i else 0.0 for j, late in enumerate(orders)]
        table.append(row)
    return table


def kept_of_top(run: Run, orders: Sequence[Order]) -> dict[str, Number]:
    """Share of the whole model's top tokens, at the layer behind the last stage, that the last stage kept (figure 8).

    A stage after `n` layers chooses for layer n + 1, so it is compared with the ranking of that layer; a first one
    reads layer n's map, so with that of layer n.
    """
    # A run names slots of the prompt, a ranking places among its visual tokens.
    visual = run.candidates[0][0].tolist()
    place = {slot: i for i, slot in enumerate(visual)}
    kept = {place[slot] for slot in run.kept[-1][0].tolist()}
    # A first stage reads the map of the layer before it; all others that of the layer they stand before.
    order = orders[run.after[-1]] if len(run.after) > 1 else orders[run.after[-1] - 1]
    return {str(share): _share(kept, order, share) for share in TOPS}


def _share(found: set[int], order: Order, share: Number) -> Number:
    # Rounded up as in `measure.first`.
    top = order[: max(1, math.ceil(share * len(order) - 1e-9))]
    return sum(place in found for place in top) / len(top)
