"""Tokens merged inside the tower, layer by layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swiftvlm.stage import Positions
from swiftvlm.tower import Block, Reduced, Seen, unit


@dataclass(frozen=True)
class Merging:
    """Bipartite matching in every layer of the tower that runs before features are taken."""

    positions: Positions
    ordered: bool = True

    def reduce(self, seen: Seen, kept: int, merged: int) -> Reduced:
        """Raster order: every token stands for the patch that others merged into."""
        total, device = len(seen.patch), seen.features.device
        # Nothing to merge: the embeddings that there are, since running the layers again might round otherwise.
        if kept < 1 or kept >= total:
            index = torch.arange(total if kept else 0, device=device)
            return Reduced(seen.embeds[index], index)
        first = torch.zeros(1, dtype=torch.long, device=device)
        # What enters layer 0, [CLS] first. `place`: each token's index among the tile's patches, -1 for [CLS].
        states = seen.states(0)[torch.cat([first, 1 + seen.patch])]
        size, place = torch.ones(total + 1, device=device), torch.arange(-1, total, device=device)
        for layer in range(seen.depth):
            fewer = len(place) - 1 - left(len(place) - 1, seen.depth - layer, kept)
            states, size, place = _run(seen.block(layer), states, size, place, fewer)
        # [CLS], in the first even place and never merged, is still in front.
        order = place[1:].argsort()
        return Reduced(seen.project(states[1:][order]), place[1:][order])


def left(tokens: int, layers: int, target: int) -> int:
    """How many of `tokens` patches to leave behind one of `layers` layers: as evenly as halving allows.

    No layer merges more than half but the last, which goes on until the target.
    """
    if layers == 1:
        return target
    # With more than this the layers behind, halving at best, would miss the target. -(-a // b) rounds up.
    most: int = target << (layers - 1)
    return max(-(-tokens // 2), min(tokens - -(-(tokens - target) // layers), most))


def _run(
    block: Block, states: Float[Tensor, "tokens dim"], size: Tensor, place: Tensor, fewer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of the tower, with a merge between its halves."""
    query, key, value = (block.heads(which, states) for which in "qkv")
    logits = query.float() @ key.float().transpose(1, 2) / query.shape[-1] ** 0.5
    # A token made of many counts as many: proportional attention.
    weights = torch.softmax(logits + size.log(), dim=-1).to(value)
    states, metric = states + block.joined(weights @ value), key.float().mean(0)
    while fewer:
        # One round merges half of what there is at the most; only a last layer can be due more.
        now = min(fewer, (len(place) - 1) // 2)
        edges = _edges(metric, now)
        # Before the next line replaces `size`, which it must be weighted by; only a further round reads it.
        metric = _merged(metric, size, place, edges)[0]
        states, size, place = _merged(states, size, place, edges)
        fewer -= now
    return states + block.mlp(states), size, place


def _edges(metric: Float[Tensor, "tokens dim"], fewer: int) -> tuple[Int[Tensor, " fewer"], Int[Tensor, " fewer"]]:
    """Which even places merge into which odd ones: those with the likest partner. [CLS] stands first and never does."""
    units = unit(metric)
    alike, best = (units[::2] @ units[1::2].T).max(dim=1)
    alike[0] = -torch.inf
    going = alike.sort(descending=True, stable=True).indices[:fewer]
    return going * 2, best[going] * 2 + 1


def _merged(states: Tensor, size: Tensor, place: Tensor, edges: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Size-weighted means; then what is left of the even places, then all odd ones."""
    source, target = edges
    number = torch.arange(len(states), device=states.device)
    # (places, sources). A matmul, not index_add: atomics would sum in another order on every run.
    into = (number[:, None] == target).float()
    weighed = states.float() * size[:, None]
    weighed, size = weighed + into @ weighed[source], size + into @ size[source]
    stays = ~torch.isin(number, source)
    order = torch.cat([number[::2][stays[::2]], number[1::2]])
    return (weighed / size[:, None])[order].to(states), size[order], place[order]
