"""Arithmetic of a prefill: the paper's formula as printed, and an exact count in one unit.

The paper's eq. 17 counts multiply-accumulates (1 per MAC) and eq. 19 counts 2 per MAC, yet Table 1 adds them and calls
the sum FLOPs. `paper_*` reproduces that mixed unit so that published columns can be checked to the printed digit;
`exact_*` counts 2 per MAC everywhere, knows grouped-query attention and the output head. Never compare the two.
"""

from collections.abc import Sequence

from swiftvlm.amounts import Number
from swiftvlm.plans import Plan
from swiftvlm.shape import ModelShape


def paper_layer(shape: ModelShape, tokens: Number) -> Number:
    """Eq. 17: C_n = 4 n d^2 + 2 n^2 d + 3 n d m, in multiply-accumulates, attention as a full square."""
    # Q, K, V and O are 4 n d^2, so shared key heads are counted as if they were not: the paper's models share none.
    d, m = shape.hidden, shape.intermediate
    return 4 * tokens * d * d + 2 * tokens * tokens * d + 3 * tokens * d * m


def paper_base(shape: ModelShape, visual_per_layer: Sequence[Number], text: Number) -> Number:
    """Eq. 18: the sum of `paper_layer` over the layers, text tokens included; no tower, projector or head."""
    return sum(paper_layer(shape, visual + text) for visual in visual_per_layer)


def paper_reevaluation(shape: ModelShape, visual: int, bypassed: int, merged: int, kept_ratio: Number) -> Number:
    """Eq. 19: F_o = 2RZd + Rd + 2 n_v d + 2 d^2 + 2 (1 - r) n_v d^2 for one re-evaluation, at 2 per MAC."""
    d = shape.hidden
    return 2 * bypassed * merged * d + bypassed * d + 2 * visual * d + 2 * d * d + 2 * (1 - kept_ratio) * visual * d * d


def paper_total(shape: ModelShape, plan: Plan) -> Number:
    """Table 1's FLOPs column: `paper_base`, and a `paper_reevaluation` for each stage that restores tokens."""
    # Eq. 19 is paid by the stage that restores, with the R and Z of the stage before it.
    total = paper_base(shape, plan.tokens_per_layer, plan.text)
    for before, cut in zip(plan.cuts, plan.cuts[1:], strict=False):
        if cut.reevaluates:
            bypassed = plan.visual - before.kept
            total += paper_reevaluation(shape, plan.visual, bypassed, before.merged, cut.kept / plan.visual)
    return total


def exact_layer(shape: ModelShape, tokens: Number) -> Number:
    """FLOPs (2 per MAC) of one decoder layer: projections with shared key/value heads, causal attention, gated MLP."""
    d, wide, narrow, m = shape.hidden, shape.query_width, shape.kv_width, shape.intermediate
    projections = tokens * d * (2 * wide + 2 * narrow)
    # A causal row i reads i keys and i values: half the paper's square.
    attention = 2 * wide * tokens * (tokens + 1) / 2
    return 2 * (projections + attention + 3 * tokens * d * m)


def exact_stage(shape: ModelShape, alive: Number, merged: int, scored: bool) -> Number:
    """FLOPs of one stage on `alive` tokens, text included: keys and one query row if `scored`, grouping and means."""
    d = shape.hidden
    # A plan does not know its scores: too much where keys come from a cache, too little for several query rows.
    score = alive * d * shape.kv_width + d * shape.query_width + alive * shape.query_width if scored else 0.0
    # Similarity to the anchors, one-hot means, and offsets handed back: three products over the whole sequence.
    return 2 * (score + 3 * alive * merged * d)


def exact_total(shape: ModelShape, plan: Plan) -> Number:
    """FLOPs (2 per MAC) of the language model's prefill under a plan: layers, stages, and the head for one token."""
    # Only the last token's logits are needed, so the head is paid once, as generate does (logits_to_keep=1).
    layers = sum(exact_layer(shape, tokens) for tokens in plan.all_tokens_per_layer)
    alive, stages = plan.visual, 0.0
    for cut in plan.cuts:
        alive = plan.visual if cut.reevaluates else alive
        stages += exact_stage(shape, alive + plan.text, cut.merged, scored=cut.after > 0)
        alive = cut.total
    return layers + stages + 2 * shape.hidden * shape.vocab
