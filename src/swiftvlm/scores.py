"""How tokens are rated: the attention of the last prompt token, or baselines that look at nothing."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swiftvlm.stage import Score
from swiftvlm.tokens import keep_top


@dataclass(frozen=True)
class Started:
    """The prompt as layer 0 got it: embeddings, and as in `View`, but by slot."""

    hidden: Float[Tensor, "batch prompt dim"]
    present: Bool[Tensor, "batch prompt"]
    candidates: Bool[Tensor, "batch prompt"]
    query: Int[Tensor, " batch"]


@dataclass(frozen=True)
class View:
    """What a score may look at: the sequence as it stands at a stage, bypassed tokens restored.

    `hidden`: states of all tokens; `slot`: each token's index in the prompt as given (-1 = filler); `present`: tokens
    that are really there; `candidates`: the visual tokens that compete; `query`: place of each row's last prompt token;
    `keep`: how many of them the score is to find; `input_ids`: the prompt as given; `reserved`: candidates that stay
    whatever the score says, and that `keep` leaves out.

    Worked out only when called: `attention_logits(queries, rope)`, float32 q.k / sqrt(d) rows of the probed layer for
    the tokens at `queries`, (batch, heads, queries, tokens); `keys()`, that layer's keys, turned by positions from 0,
    and `values()`, its values, (batch, kv_heads, tokens, head_dim); `entered()`, the states that went into it, (batch,
    tokens, dim); `final()`, the states behind the model's last norm; `cells()`, image, tile, grid row and grid column
    of every token, (batch, tokens, 4), -1 where it has none; `start()`, the prompt before any layer; `turned()`, cos
    and sin of every token's position counted from its row's first, float32, (batch, tokens, head_dim); `labels()`, the
    cluster that a cut before the language model put every token in, (batch, tokens), -1 = none.
    """

    hidden: Float[Tensor, "batch tokens dim"]
    slot: Int[Tensor, "batch tokens"]
    present: Bool[Tensor, "batch tokens"]
    candidates: Bool[Tensor, "batch tokens"]
    query: Int[Tensor, " batch"]
    keep: tuple[int, ...]
    input_ids: Int[Tensor, "batch prompt"]
    attention_logits: Callable[[Tensor, bool], Tensor]
    keys: Callable[[], Tensor]
    values: Callable[[], Tensor]
    entered: Callable[[], Tensor]
    final: Callable[[], Tensor]
    cells: Callable[[], Tensor]
    start: Callable[[], Started]
    turned: Callable[[], tuple[Tensor, Tensor]]
    labels: Callable[[], Tensor]
    reserved: Bool[Tensor, "batch tokens"] | None = None

    @property
    def open(self) -> Bool[Tensor, "batch tokens"]:
        """The candidates to choose from."""
        return self.candidates if self.reserved is None else self.candidates & ~self.reserved


@dataclass(frozen=True)
class TextAttention:
    """Attention from the last prompt token to every token: softmax in float32, then the mean over heads.

    FastV, PyramidDrop and SwiftVLM share it. `probe`: "previous" reads the map of the layer just run, "next" projects
    with the layer about to run. `softmax_over`: all causal keys, or visual keys only (FEATHER). `rope`: whether the
    score turns with the positions. One query row is computed; attention weights are never requested from the model.
    """

    probe: Literal["previous", "next"]
    softmax_over: Literal["all", "visual"] = "all"
    rope: bool = True

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """Head-mean attention probability of each token; tokens behind the query get 0."""
        # After the softmax, not before: a head's weights are shares, and FastV averages shares.
        logits = view.attention_logits(view.query[:, None], self.rope)[:, :, 0]
        causal = torch.arange(view.slot.shape[1], device=view.slot.device) <= view.query[:, None]
        keys = view.candidates if self.softmax_over == "visual" else view.present & causal
        weights = torch.softmax(logits.masked_fill(~keys[:, None], -torch.inf), dim=-1)
        # A text-only row of a mixed batch has no visual key, and the softmax of nothing is NaN.
        return torch.nan_to_num(weights).mean(1)


def marked(view: View, choose: Callable[[int, Tensor, int], Sequence[int] | Tensor]) -> Float[Tensor, "batch tokens"]:
    """1 for chosen tokens, 0 for all others: `choose(row, visual, keep)` names `keep` of the places in `visual`."""
    scores = torch.zeros(view.slot.shape, device=view.slot.device)
    for row, keep in enumerate(view.keep):
        visual = view.open[row].nonzero()[:, 0]
        # None are wanted where coordinate tokens have taken every place.
        if len(visual) and keep:
            scores[row, choose(row, visual, min(keep, len(visual)))] = 1.0
    return scores


def behind(
    present: Bool[Tensor, " tokens"], visual: Int[Tensor, " visual"], query: Tensor | int
) -> Int[Tensor, " text"]:
    """Places of a row's text behind its last visual token, the last prompt token included."""
    place = torch.arange(len(present), device=present.device)
    return (present & (place > visual[-1]) & (place <= query)).nonzero()[:, 0]


@dataclass(frozen=True)
class Covered:
    """Another score, but every `stride`-th row and column of each tile comes first: FEATHER's grid."""

    score: TextAttention
    stride: int

    @property
    def probe(self) -> Literal["previous", "next"] | None:
        """That of the other score."""
        return self.score.probe

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """The other score, plus 2 (more than any attention) on the grid. Raises `UnsupportedError` without cells."""
        place = view.cells()[..., 2:]
        # Local to a tile, so every tile has its own grid; a newline's -1 is a multiple of a stride of 1, too.
        grid = ((place >= 0) & (place % self.stride == 0)).all(-1)
        return self.score.rate(view) + 2.0 * (grid & view.candidates)


@dataclass(frozen=True)
class Coordinates:
    """Another score, but the tokens whose positions serve as coordinates come first (IVC-Prune's, for any method).

    RoPE's angles are almost all near 0, or all near a quarter turn, at a few positions: half of `share` of the visual
    tokens are those of the largest mean cosine, half those of the largest mean sine. The question has no say in it.
    The other score chooses among the rest, and as many as there are places left; where coordinates alone are too many,
    it also says which of them stay.
    """

    score: Score
    share: float

    @property
    def probe(self) -> Literal["previous", "next"] | None:
        """That of the other score."""
        return self.score.probe

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """The other score, and more than any of it on coordinate tokens."""
        # The two sets may share tokens; the places that this leaves free go to the best of the other score.
        each = (view.candidates.sum(1) * self.share / 2).round().long()
        # In float32 whatever the model's type: values near the cut are close.
        cos, sin = (part.float().mean(-1).expand(view.slot.shape) for part in view.turned())
        chosen = keep_top(cos, view.candidates, each) | keep_top(sin, view.candidates, each)
        # Scores that choose sets must spend nothing on tokens that stay anyway.
        left = [max(keep - taken, 0) for keep, taken in zip(view.keep, chosen.sum(1).tolist(), strict=True)]
        rated: Tensor = self.score.rate(replace(view, keep=tuple(left), reserved=chosen))
        # Scores have no bound of their own, as attention has: a row's spread is more than any difference in it.
        low, high = (rated.masked_fill(~view.candidates, end) for end in (torch.inf, -torch.inf))
        spread = (high.amax(1, keepdim=True) - low.amin(1, keepdim=True)).nan_to_num(posinf=0.0, neginf=0.0)
        return rated + (spread + 1.0) * chosen


@dataclass(frozen=True)
class Uniform:
    """Evenly spaced candidates in raster order: the middles of `keep` equal stretches."""

    probe: None = None

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """1 for the evenly spaced candidates, 0 for all others."""

        def choose(row: int, visual: Tensor, keep: int) -> Tensor:
            # Middles of equal stretches, not multiples of a step: both edges of the image are as far from a token.
            return visual[(torch.arange(keep, device=visual.device) * 2 + 1) * len(visual) // (2 * keep)]

        return marked(view, choose)


@dataclass(frozen=True)
class Random:
    """Uniformly random candidates, drawn anew for every prompt but the same for the same prompt and seed.

    Each row has a generator of its own, seeded by the row's unpadded token ids: a batch draws what its rows would.
    """

    seed: int = 0
    probe: None = None

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """Independent uniform numbers in [0, 1), one a candidate."""
        scores = torch.zeros(view.slot.shape)
        candidates, slots, ids = view.candidates.cpu(), view.slot.cpu(), view.input_ids.cpu()
        present = view.present.cpu()
        for row in range(scores.shape[0]):
            # Padding is left out, so that a row draws the same tokens alone and in any batch.
            prompt = ids[row, slots[row][present[row]]]
            # On the CPU, as devices draw other numbers; by crc32, as `hash` of bytes changes from process to process.
            generator = torch.Generator().manual_seed(self.seed + zlib.crc32(prompt.numpy().tobytes()))
            scores[row, candidates[row]] = torch.rand(int(candidates[row].sum()), generator=generator)
        return scores.to(view.slot.device)
