"""What a vision tower saw of one tile, and the small choices that methods before the language model are made of.

A tile is one square grid of patches with a [CLS] token in front. Tiles are few and looked at one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """One layer of the tower, in parts, to run it anew on states (tokens, dim); residuals are not added.

    `heads(which, states)`: "q", "k" or "v" of its normed input, (heads, tokens, head_dim); `joined(heads)`: the way
    back; `mlp(states)`: its second half.
    """

    heads: Callable[[str, Tensor], Tensor]
    joined: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Seen:
    """One tile: m patches that may be chosen, in raster order (an unpadded anyres tile lacks some of its grid).

    `patch`: their raster indexes on a grid of `side` x `side`. `features`: what the projector was given, and `embeds`,
    what the language model would get. `project`: the projector. `layers`: of the tower; `depth`: how many of them ran
    before `features` were taken. `states(i)`: (tokens, dim) behind i layers, [CLS] first; `queries(i)` and `keys(i)`:
    (heads, tokens, head_dim) of layer i from 0, in float32. `block(i)`: that layer. `text`: ids of the prompt's tokens
    behind the row's last visual token. `clusters`: how many merged tokens the plan's next cut grants this tile.
    """

    patch: Int[Tensor, " m"]
    side: int
    features: Float[Tensor, "m dim"]
    embeds: Float[Tensor, "m out"]
    layers: int
    depth: int
    project: Callable[[Tensor], Tensor]
    states: Callable[[int], Tensor]
    queries: Callable[[int], Tensor]
    keys: Callable[[int], Tensor]
    block: Callable[[int], Block]
    text: Int[Tensor, " text"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    clusters: int = 0

    @property
    def last(self) -> int:
        """The layer that made the features, from 0: CLIP-L's layers[22] in LLaVA."""
        return self.depth - 1

    def scaled(self, depth: int, published: int = 24) -> int:
        """A depth of CLIP-L's 24 layers as the same fraction of this tower's."""
        return round(depth * self.layers / published)

    def patches(self, tokens: Tensor) -> Tensor:
        """The chosen patches' rows of what has a row a token, of shape (..., tokens, x) -> (..., m, x)."""
        # Row 0 is [CLS].
        return tokens.index_select(-2, 1 + self.patch)

    def from_cls(self, layer: int) -> Float[Tensor, "heads m"]:
        """Attention that [CLS] pays to each patch: one row of the map, softmax over all tokens."""
        # (heads, 1, tokens); patches are taken behind the softmax, in which those an unpadded tile lacks had a share.
        rows = self._weights(layer, self.queries(layer)[:, :1])
        return self.patches(rows.transpose(1, 2))[..., 0]

    def from_all(self, layer: int) -> Float[Tensor, " m"]:
        """Attention that each patch gets, mean over heads and over all tokens that pay it."""
        rows = self._weights(layer, self.queries(layer)).mean((0, 1))
        return self.patches(rows[:, None])[:, 0]

    def _weights(self, layer: int, queries: Tensor) -> Tensor:
        logits = queries @ self.keys(layer).transpose(1, 2) / queries.shape[-1] ** 0.5
        return torch.softmax(logits, dim=-1)


@dataclass(frozen=True)
class Reduced:
    """What goes to the language model instead of a tile's patches, in the order in which it is fed.

    `stands`: which of the tile's m patches each token stands for, -1 for none. `merged`: how many of the tokens, the
    last of them, are merged ones; `groups`: the one that each patch went into, from 0, -1 = none.
    `labels`: the cluster of each token, for a cut inside the model to read (`View.labels`).
    """

    features: Float[Tensor, "k out"]
    stands: Int[Tensor, " k"]
    merged: int = 0
    groups: Int[Tensor, " m"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    labels: Int[Tensor, " k"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


def chosen(seen: Seen, index: Int[Tensor, " k"]) -> Reduced:
    """Some patches as they are, in raster order."""
    index = index.sort().values
    return Reduced(seen.embeds[index], index)


def top(scores: Float[Tensor, " m"], count: int) -> Int[Tensor, " k"]:
    """Indexes of the best, best first; ties: the lower index."""
    # A negative count would take all but the last ones instead of none.
    return scores.float().sort(descending=True, stable=True).indices[: max(count, 0)]


def best_of(scores: Float[Tensor, " m"], among: Int[Tensor, " n"], count: int) -> Int[Tensor, " k"]:
    """`top` among some indexes, which ascend."""
    return among[top(scores[among], count)]


def others(index: Int[Tensor, " k"], total: int) -> Int[Tensor, " n"]:
    """The indexes up to `total` that are not listed, ascending."""
    free = torch.ones(total, dtype=torch.bool, device=index.device)
    free[index] = False
    return free.nonzero()[:, 0]


def unit(vectors: Float[Tensor, "m dim"]) -> Float[Tensor, "m dim"]:
    """Directions in float32."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1, eps=1e-12)


def cosines(vectors: Float[Tensor, "m dim"]) -> Float[Tensor, "m m"]:
    """Of every two, exactly symmetric: a product's two halves may round apart."""
    units = unit(vectors)
    table = units @ units.T
    return (table + table.T) / 2


def first_max(values: Float[Tensor, " m"]) -> int:
    """The lowest index of the largest value, on every device."""
    return int((values == values.max()).nonzero()[0, 0])


def nearest(units: Float[Tensor, "m dim"], members: Tensor, targets: Tensor) -> Int[Tensor, " n"]:
    """For each member the place, among the targets, of the one of highest cosine; ties: the first."""
    return (units[members] @ units[targets].T).max(dim=1).indices
