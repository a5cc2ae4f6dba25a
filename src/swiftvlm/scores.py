"""How tokens are rated: the attention of the last prompt token, or baselines that look at nothing."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swiftvlm.stage import Score
from swiftvlm.tokens import keep_top, places


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
    that are really there; `candidates`: the visual tokens to choose from; `query`: place of each row's last prompt
    token; `keep`: how many candidates the plan keeps; `input_ids`: the prompt as given.

    Worked out only when called: `attention_logits(queries, rope)`, float32 q.k / sqrt(d) rows of the probed layer for
    the tokens at `queries`, (batch, heads, queries, tokens); `keys()`, that layer's keys, turned by positions from 0,
    and `values()`, its values, (batch, kv_heads, tokens, head_dim); `entered()`, the states that went into it, (batch,
    tokens, dim); `final()`, the states behind the model's last norm; `cells()`, image, tile, grid row and grid column
    of every token, (batch, tokens, 4), -1 where it has none; `start()`, the prompt before any layer; `turned()`, cos
    and sin of every token's position counted from its row's first, (batch, tokens, head_dim); `labels()`, the cluster
    that a cut before the language model put every token in, (batch, tokens), -1 = none.
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
        return table.sum(1) / real.sum(1, keepdim=True).clamp(min=1)

    def table(self, view: View) -> tuple[Float[Tensor, "batch raters tokens"], Bool[Tensor, "batch raters"]]:
        """Every rater's head-mean attention, and which are real: rows of zeros behind a row's last rater."""
        chosen = self.chosen(view)
        queries, real = places(chosen, int(chosen.sum(1).max()))
        logits = view.attention_logits(queries, True)
        causal = torch.arange(view.slot.shape[1], device=view.slot.device) <= queries[..., None]
        keys = view.present[:, None] & causal & real[..., None]
        weights = torch.softmax(logits.masked_fill(~keys[:, None], -torch.inf), dim=-1)
        return torch.nan_to_num(weights).mean(1), real

    def chosen(self, view: View) -> Bool[Tensor, "batch tokens"]:
        """Which tokens of the view rate. Text is never dropped, so the choice is the same at every stage."""
        start = view.start()
        whole = torch.stack([self._raters(start, row) for row in range(len(start.query))]).to(view.slot.device)
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
        shares = torch.softmax(states[visual] @ states[text].T, dim=-1).mean(0)
        more = shares > shares.mean()
        return more if bool(more.any()) else torch.ones_like(more)


@dataclass(frozen=True)
class AllText(Raters):
    """Mean attention from all text behind the image."""

    def _above(
        self, states: Float[Tensor, "prompt dim"], visual: Int[Tensor, " visual"], text: Int[Tensor, " text"]
    ) -> Bool[Tensor, " text"]:
        return torch.ones_like(text, dtype=torch.bool)


@dataclass(frozen=True)
class RankOfAttention:
    """The first release's count: the rank of the raters' attention to the visual tokens, scaled (int(rank * s + b))."""

    scale: float
    bias: float

    def __call__(self, view: View, scores: Tensor) -> Sequence[int]:
        """One count a row, at least 1."""
        table, _ = Raters().table(view)
        ranks = [
            int(torch.linalg.matrix_rank(rows[:, visual])) for rows, visual in zip(table, view.candidates, strict=True)
        ]
        return [max(int(rank * self.scale + self.bias), 1) for rank in ranks]


def behind(present: Bool[Tensor, " tokens"], visual: Int[Tensor, " visual"], query: Tensor) -> Int[Tensor, " text"]:
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
        grid = ((place >= 0) & (place % self.stride == 0)).all(-1)
        return self.score.rate(view) + 2.0 * (grid & view.candidates)


@dataclass(frozen=True)
class Coordinates:
    """Another score, but the tokens whose positions serve as coordinates come first (IVC-Prune's, for any method).

    RoPE's angles are almost all near 0, or all near a quarter turn, at a few positions: half of `share` of the visual
    tokens are those of the largest mean cosine, half those of the largest mean sine. The question has no say in it.
    """

    score: Score
    share: float

    @property
    def probe(self) -> Literal["previous", "next"] | None:
        """That of the other score."""
        return self.score.probe

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """The other score, plus 2 (more than any attention) on coordinate tokens."""
        each = (view.candidates.sum(1) * self.share / 2).round().long()
        # In float32 whatever the model's type: values near the cut are close.
        cos, sin = (part.float().mean(-1).expand(view.slot.shape) for part in view.turned())
        chosen = keep_top(cos, view.candidates, each) | keep_top(sin, view.candidates, each)
        rated: Tensor = self.score.rate(view)
        return rated + 2.0 * chosen


@dataclass(frozen=True)
class Dissimilar:
    """What is least like a few pivots, the tokens of the largest keys (DART). Attention is not looked at.

    `pivots`: as many visual and as many text tokens behind the image. Each pivot in turn adds its share of the visual
    tokens still left, those of the lowest cosine to it.
    """

    pivots: int
    probe: Literal["previous", "next"] = "previous"

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """1 for chosen tokens, 0 for all others."""
        sizes = view.keys().float().abs().sum((1, 3))
        units = torch.nn.functional.normalize(view.final().float(), dim=-1)
        scores = torch.zeros(view.slot.shape, device=view.slot.device)
        for row, keep in enumerate(view.keep):
            visual = view.candidates[row].nonzero()[:, 0]
            if len(visual):
                text = behind(view.present[row], visual, view.query[row])
                scores[row, self._chosen(sizes[row], units[row], visual, text, min(keep, len(visual)))] = 1.0
        return scores

    def _chosen(self, sizes: Tensor, units: Tensor, visual: Tensor, text: Tensor, keep: int) -> list[int]:
        """Places of `keep` visual tokens."""
        kept = _first(-sizes, visual, min(self.pivots, keep))
        pivots = kept + _first(-sizes, text, self.pivots)
        share, more = divmod(keep - len(kept), len(pivots))
        for number, pivot in enumerate(pivots):
            left = visual[~torch.isin(visual, torch.tensor(kept, device=visual.device))]
            kept = kept + _first(units @ units[pivot], left, share + (number < more))
        return kept


def _first(values: Tensor, among: Tensor, count: int) -> list[int]:
    """The `count` places of the lowest values, ascending in value; ties: the lower place."""
    best: list[int] = among[torch.argsort(values[among], stable=True)[:count]].tolist()
    return best


@dataclass(frozen=True)
class Uniform:
    """Evenly spaced candidates in raster order: the middles of `keep` equal stretches."""

    probe: None = None

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """1 for the evenly spaced candidates, 0 for all others."""
        scores = torch.zeros(view.slot.shape, device=view.slot.device)
        for row, keep in enumerate(view.keep):
            # Middles of equal stretches, not multiples of a step: both edges of the image are as far from a token.
            places = view.candidates[row].nonzero()[:, 0]
            middles = (torch.arange(keep, device=places.device) * 2 + 1) * len(places) // max(2 * keep, 1)
            scores[row, places[middles]] = 1.0
        return scores


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
            generator = torch.Generator().manual_seed(self.seed + zlib.crc32(prompt.numpy().tobytes()))
            scores[row, candidates[row]] = torch.rand(int(candidates[row].sum()), generator=generator)
        return scores.to(view.slot.device)
