"""Attention from the text that the image is about (SparseVLM), or from all of it (STAR)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swiftvlm import tokens
from swiftvlm.scores import Started, View, behind


@dataclass(frozen=True)
class Raters:
    """Mean attention from the text tokens that the image is about: SparseVLM's raters.

    Chosen once, on the language model's input embeddings: every visual token spreads a share of 1 over the text behind
    the image (softmax of dot products), and raters get more than the average text token; all, where all get the same.
    """

    probe: Literal["previous", "next"] = "previous"

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """Attention probability of each token, mean over heads and raters."""
        table, real = self.table(view)
        # Each row by its own number of raters: what fills up the table is zero.
        return table.sum(1) / real.sum(1, keepdim=True).clamp(min=1)

    def table(self, view: View) -> tuple[Float[Tensor, "batch raters tokens"], Bool[Tensor, "batch raters"]]:
        """Every rater's head-mean attention, and which are real: rows of zeros behind a row's last rater."""
        chosen = self.chosen(view)
        queries, real = tokens.places(chosen, int(chosen.sum(1).max()))
        # (batch, heads, raters, tokens); a rater attends to what stands before it, as in the layer's own map.
        logits = view.attention_logits(queries, True)
        causal = torch.arange(view.slot.shape[1], device=view.slot.device) <= queries[..., None]
        keys = view.present[:, None] & causal & real[..., None]
        weights = torch.softmax(logits.masked_fill(~keys[:, None], -torch.inf), dim=-1)
        # Behind a row's last rater no key is left, and the softmax of nothing is NaN.
        return self._over_heads(view, torch.nan_to_num(weights), queries), real

    def _over_heads(
        self, view: View, weights: Float[Tensor, "batch heads raters tokens"], queries: Int[Tensor, "batch raters"]
    ) -> Float[Tensor, "batch raters tokens"]:
        """The mean of all heads."""
        return weights.mean(1)

    def chosen(self, view: View) -> Bool[Tensor, "batch tokens"]:
        """Which tokens of the view rate. Text is never dropped, so the choice is the same at every stage."""
        start = view.start()
        whole = torch.stack([self._raters(start, row) for row in range(len(start.query))]).to(view.slot.device)
        # From slots of the prompt to places in the view; a filler reads slot 0 and must not rate for it.
        return whole.gather(1, view.slot.clamp(min=0)) & (view.slot >= 0)

    def _raters(self, start: Started, row: int) -> Bool[Tensor, " prompt"]:
        """Of one row, by slot."""
        visual, chosen = start.candidates[row].nonzero()[:, 0], torch.zeros_like(start.present[row])
        if len(visual):
            text = behind(start.present[row], visual, start.query[row])
            chosen[text[self._above(start.hidden[row].float(), visual, text)]] = True
        return chosen

    def _above(
        self, states: Float[Tensor, "prompt dim"], visual: Int[Tensor, " visual"], text: Int[Tensor, " text"]
    ) -> Bool[Tensor, " text"]:
        """Which text gets more than the average."""
        # (visual, text) as in the official code: plain products, neither scaled nor turned nor masked.
        shares = torch.softmax(states[visual] @ states[text].T, dim=-1).mean(0)
        more = shares > shares.mean()
        return more if bool(more.any()) else torch.ones_like(more)


@dataclass(frozen=True)
class Corrected(Raters):
    """SparseVLM+'s: what RoPE alone would give is divided out, and only `share` of the heads are asked.

    Officially the 14 of 32 heads whose raters attend most to the visual tokens, all raters and tokens taken together.
    """

    share: float = 14 / 32

    def _over_heads(
        self, view: View, weights: Float[Tensor, "batch heads raters tokens"], queries: Int[Tensor, "batch raters"]
    ) -> Float[Tensor, "batch raters tokens"]:
        freed = weights / _pull(view, queries)[:, None]
        spent = (freed * view.candidates[:, None, None]).sum((2, 3))
        best = spent.topk(max(round(self.share * weights.shape[1]), 1), dim=1).indices
        # (batch, chosen heads, raters, tokens)
        return freed.gather(1, best[..., None, None].expand(-1, -1, *freed.shape[2:])).mean(1)


def _pull(view: View, queries: Int[Tensor, "batch raters"]) -> Float[Tensor, "batch raters tokens"]:
    """Logits that a query and a key of ones would have, turned by their positions: SparseVLM+'s "gravity"."""
    cos, sin = view.turned()
    half = cos.shape[-1] // 2
    # A vector of ones, turned as Llama turns its vectors: entry i with entry i + half.
    ones = torch.cat([cos[..., :half] - sin[..., :half], cos[..., half:] + sin[..., half:]], dim=-1)
    pull: Tensor = tokens.rows(ones, queries) @ ones.transpose(1, 2) / cos.shape[-1] ** 0.5
    return pull


@dataclass(frozen=True)
class AllText(Raters):
    """Mean attention from all text behind the image."""

    def _above(
        self, states: Float[Tensor, "prompt dim"], visual: Int[Tensor, " visual"], text: Int[Tensor, " text"]
    ) -> Bool[Tensor, " text"]:
        return torch.ones_like(text, dtype=torch.bool)


@dataclass(frozen=True)
class RankOfAttention:
    """The first release's counts: the rank of the raters' attention to the visual tokens, scaled (int(rank * s + b)),

    and the merged tokens that come of what this drops.
    """

    scale: float
    bias: float

    def __call__(self, view: View, scores: Tensor) -> Sequence[tuple[int, int]]:
        """(kept, merged) of each row, no more than planned; `scores` (batch, tokens) do not matter."""
        # Not from the scores, which are its mean over raters. What fills up the table would widen the tolerance.
        table, real = Raters().table(view)
        rows = zip(table, real, view.candidates, strict=True)
        ranks = [int(torch.linalg.matrix_rank(row[raters][:, visual])) for row, raters, visual in rows]
        # Merged tokens follow from what is kept in the end: within the plan's bound.
        wanted = [max(int(rank * self.scale + self.bias), 1) for rank in ranks]
        # Earlier cuts may have kept less than was planned for this one.
        there = view.candidates.sum(1).tolist()
        counts = [min(bounds) for bounds in zip(wanted, view.keep, there, strict=True)]
        return [(count, recycled(seen - count)) for count, seen in zip(counts, there, strict=True)]


def recycled(dropped: int) -> int:
    """Merged tokens that come of so many dropped ones: the best 30% and one more, a cluster for every ten."""
    return int((int(0.3 * dropped) + 1) / 10) + 1 if dropped > 0 else 0
