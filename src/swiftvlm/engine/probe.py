"""`Probe`: the queries and keys of the layer that a stage scores with."""

from dataclasses import dataclass

from torch import Tensor, nn

from swiftvlm import tokens
from swiftvlm.families import Family


@dataclass(frozen=True)
class Probe:
    """The inputs of a layer whose projections a stage scores with; `keys`: its cached keys where they serve."""

    layer: nn.Module
    hidden: Tensor
    rotary: tuple[Tensor, Tensor]
    keys: Tensor | None = None

    def logits(self, family: Family, queries: Tensor, rope: bool) -> Tensor:
        """q.k / sqrt(d) of a few query tokens in float32: (batch, heads, queries, tokens); knows shared key heads."""
        cos, sin = self.rotary
        chosen = (tokens.rows(cos, queries), tokens.rows(sin, queries)) if rope else None
        q = family.queries(self.layer, tokens.rows(self.hidden, queries), chosen)
        k = self.projected(family, rope)
        batch, heads, count, width = q.shape
        # Query heads that share a key head lie together, so no key is repeated.
        # (batch, kv_heads, heads / kv_heads * queries, head_dim)
        shared = q.reshape(batch, k.shape[1], -1, width).float()
        logits = shared @ k.float().transpose(2, 3) * family.scaling(self.layer)
        return logits.view(batch, heads, count, -1)

    def projected(self, family: Family, rope: bool) -> Tensor:
        """The layer's keys (batch, kv_heads, tokens, head_dim), turned by the positions or not."""
        if rope and self.keys is not None:
            return self.keys
        return family.keys(self.layer, self.hidden, self.rotary if rope else None)

    def values(self, family: Family) -> Tensor:
        """The layer's values (batch, kv_heads, tokens, head_dim)."""
        return family.values(self.layer, self.hidden)
