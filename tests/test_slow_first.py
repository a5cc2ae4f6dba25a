"""Whole methods on a few tokens whose attention is known by hand; and SparseVLM's first release, also at random.

In the model made by hand nothing happens but what a test puts in: an attention map of known weights.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.methods.fastv import FastV
from swiftvlm.methods.pdrop import PDrop
from swiftvlm.methods.sparsevlm import SparseVLM
from tests.reference.slow_field import slow_pdrop, slow_sparsevlm
from tests.reference.slow_methods import SlowResult, embed_row, slow_fastv, slow_swiftvlm
from tests.reference.slow_ours import rank_of
from tests.support import IMAGE, VOCAB
from tests.test_against_reference import CASES, EXAMPLES, Case, check, everywhere

# Channels of a state. Each state's squares sum to its width, so that the norm in front of a layer leaves it as it is.
ONE, FIRST, SECOND, ASKS, KIND, ADDRESS, TOPIC, FILL = range(8)
WIDTH, GAIN = 8, 8.0  # logits are q.k / 2 in heads of four: a key of log(w) / 4 for a query of GAIN weighs w


def state(first: float = 1.0, second: float | None = None, **channels: float) -> list[float]:
    """A token that weighs `first` in the map of head 1 and `second` (or the same) in that of head 2."""
    made = [0.0] * WIDTH
    made[ONE], made[FIRST] = 1.0, math.log(first) / 4
    made[SECOND] = math.log(first if second is None else second) / 4
    for name, value in channels.items():
        made[{"asks": ASKS, "kind": KIND, "address": ADDRESS, "topic": TOPIC}[name]] = value
    made[FILL] = math.sqrt(WIDTH - sum(value * value for value in made))
    return made


def by_hand(layers: int, query: tuple[int, int], turns: bool = False) -> nn.Module:
    """A model whose layers change nothing.

    query: channels that the two heads ask with; keys are FIRST and SECOND. turns: keys and queries are the same for
    all tokens (ONE) and turn by one radian a position; else nothing turns.
    """
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        vocab_size=VOCAB,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30},  # the second pair of a head stands still
    )
    vision = CLIPVisionConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=2
    )
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            own = layer.self_attn
            for part in (own.q_proj, own.k_proj, own.v_proj, own.o_proj, layer.mlp.down_proj):
                part.weight.zero_()
            for head, (asked, key) in enumerate(zip(query, (FIRST, SECOND), strict=True)):
                place = 4 * head + (0 if turns else 1)
                own.q_proj.weight[place, ONE if turns else asked] = GAIN
                own.k_proj.weight[place, ONE if turns else key] = 1.0
    return model.eval()


def run(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, method: Method, states: list[list[float]], visual: range
) -> tuple[Any, Tensor, Tensor, int]:
    """The engine's trace of a prompt of these states, and what the slow reference is to be given."""
    ids = torch.tensor([IMAGE if slot in visual else slot for slot in range(len(states))])
    features = torch.tensor([states[slot] for slot in visual])
    fed = SimpleNamespace(pooler_output=[features])
    monkeypatch.setattr(model.model, "get_image_features", lambda **_: fed)
    with torch.no_grad():
        for slot, one in enumerate(states):
            model.get_input_embeddings().weight[slot] = torch.tensor(one)
    pixels = torch.zeros(1, 3, 4, 4)
    with swiftvlm.prune(model, method) as trace, torch.no_grad():
        model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], pixel_values=pixels)
    return trace, embed_row(model, ids, pixel_values=pixels), ids == IMAGE, len(ids)


def kept(trace: Any) -> list[list[int]]:
    """Of the only row, stage by stage."""
    return [stage[0].tolist() for stage in trace.kept]


def test_fastv_by_hand(monkeypatch):
    """Six visual tokens A to F in slots 1 to 6; the last token asks, the one before it asks for the opposite.

    Weights in head 1: 9, 3, 1, 5, 1, 2 and 1 for each text token, 24 in all; in head 2: 1, 1, 12, 1, 6, 3, a first
    token of 94 and two others of 1, 120 in all. Twice the mean share: A .375 + .008, B .125 + .008, C .042 + .100,
    D .208 + .008, E .042 + .050, F .083 + .025: A, D and C lead. Over visual tokens alone (21 and 24) C, A and E
    would; by the product of both weights C, A and then E or F; with the row of the token before, too, A, D and B.
    """
    weights = [(9, 1), (3, 1), (1, 12), (5, 1), (1, 6), (2, 3)]
    states = [state(1, 94), *(state(*pair) for pair in weights), state(asks=-1.0), state(asks=1.0)]
    model = by_hand(3, (ASKS, ASKS))
    trace, *inputs = run(monkeypatch, model, FastV(after=1, counts=(3,)), states, range(1, 7))
    slow = slow_fastv(model, *inputs, after=1, keep=3)
    assert kept(trace) == slow.kept == [[1, 3, 4]]
    shares = {1: 0.383, 2: 0.133, 3: 0.142, 4: 0.217, 5: 0.092, 6: 0.108}
    assert {slot: 2 * score for slot, score in slow.scores[0].items()} == pytest.approx(shares, abs=1e-3)


@pytest.mark.parametrize(
    ("positions", "stages"),
    [("renumbered", [[2, 3, 4, 8], [4, 8], [8]]), ("original", [[2, 3, 4, 8], [2, 3], [3]])],
)
def test_pdrop_by_hand(monkeypatch, positions, stages):
    """Eight visual tokens in slots 1 to 8, the last token in slot 9; a half stays each time; cos(distance) decides.

    Cosines of 1 to 8: .54, -.42, -.99, -.65, .28, .96, .75, -.15. Of slots 1 to 8 (distances 8 to 1) 3, 2, 8 and 4
    lead. The row is 0 2 3 4 8 9 then; numbered afresh, distances are 4, 3, 2, 1, and 8 and 4 lead; then 0 4 8 9: 8.
    At their old positions 3 and 2 would lead again. Two layers each see 8, 4, 2 and 1: a budget of 30 / 8 of 8.
    """
    model = by_hand(8, (ONE, ONE), turns=True)
    method = PDrop(after=(2, 4, 6), positions=positions)
    made = method.plan(swiftvlm.ModelShape.of(model), 8, 2, 30 / 8 / 8)
    assert [cut.kept for cut in made.cuts] == [4, 2, 1]
    fixed = PDrop(after=(2, 4, 6), counts=(4, 2, 1), positions=positions)
    trace, *inputs = run(monkeypatch, model, fixed, [state()] * 10, range(1, 9))
    slow = slow_pdrop(model, *inputs, layers=(2, 4, 6), counts=(4, 2, 1), positions=positions)
    assert kept(trace) == slow.kept == stages


def test_swiftvlm_by_hand(monkeypatch):
    """Slots 0 and 1 are text, 2 to 9 visual, 10 asks. Weights 3, 8, 1, 2, 6, 4, 1.5, 5 and kinds + - - + + - + -.

    Stage 1 keeps two, slots 3 and 6. Of the six low ones 2, 4, 5, 7, 8, 9 every third is an anchor: 2 (+) and 7 (-).
    By cosine 5 and 8 join 2, and 4 and 9 join 7. The layer in between makes + weigh four times as much and - a
    quarter: + looks at slot 0 alone and - at slot 1. Handed back, weights are 12, 2, .25, 8, 24, 1, 6, 1.25: slots 6,
    2 and 5 lead. (The norm takes less than a tenth of it.) Without the offset 6, 9 and 7 would; dropped, only 3 and 6
    would be there.
    """
    weights, kinds = (3, 8, 1, 2, 6, 4, 1.5, 5), (1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0)
    visual = [state(weight, kind=kind) for weight, kind in zip(weights, kinds, strict=True)]
    states = [state(address=1.0), state(address=-1.0), *visual, state(asks=1.0)]
    model = by_hand(4, (ASKS, ASKS))
    between = model.model.language_model.layers[1].self_attn
    with torch.no_grad():
        for part in (between.q_proj, between.k_proj):
            part.weight.zero_()
        for head in (1, 5):  # the channel that stands still, of either head
            between.q_proj.weight[head, KIND], between.k_proj.weight[head, ADDRESS] = 200.0, 1.0
        between.v_proj.weight[0, ADDRESS] = 1.0
        for channel in (FIRST, SECOND):
            between.o_proj.weight[channel, 0] = math.log(4) / 4
    fields: dict[str, Any] = {"layers": (1, 3), "counts": (2, 2, 3)}
    trace, *inputs = run(monkeypatch, model, swiftvlm.SwiftVLM(**fields), states, range(2, 10))
    slow = slow_swiftvlm(model, *inputs, **fields)
    assert kept(trace) == slow.kept == [[3, 6], [2, 5, 6]]
    assert trace.anchors[0][0].tolist() == slow.anchors[0] == [2, 7]
    groups = {2: 0, 5: 0, 8: 0, 4: 1, 7: 1, 9: 1}
    found = zip(trace.candidates[0][0].tolist(), trace.groups[0][0].tolist(), strict=True)
    assert {slot: number for slot, number in found if number >= 0} == slow.groups[0] == groups
    assert kept_of(slow, [2, 4, 5, 7, 8, 9]) == pytest.approx([12, 0.25, 8, 1, 6, 1.25], rel=1e-4)


def kept_of(slow: SlowResult, slots: list[int]) -> list[float]:
    """The weights of some tokens behind the last stage."""
    return [math.exp(4 * float(slow.states[-1][slot][FIRST])) for slot in slots]


@pytest.mark.parametrize(
    ("asks", "counts", "stages"),
    [
        ((1.0, 1.0), (7, 7), [[2, 3, 6], [1, 2, 3]]),  # rank 1: int(1 * 2.5 + .6)
        ((1.0, 1.0), (2, 2), [[3, 6], [1, 3]]),  # no more than planned
        ((1.0, 0.0), (7, 7), [[1, 2, 3, 5, 6], [1, 2, 3, 4, 5]]),  # rank 2: int(2 * 2.5 + .6)
    ],
)
def test_the_first_release_by_hand(monkeypatch, asks, counts, stages):
    """Seven visual tokens in slots 1 to 7, three of text behind, of which 8 and 9 are about the image.

    Slots weigh 3, 4, 9, 1, 2, 6, 1. If both raters ask alike, their rows are proportional (the second also sees the
    first): rank 1, and 3, 6 and 2 stay. If one asks nothing its row is even: rank 2; 1 and 5 stay, too. The best two of
    the four or five dropped, 1 and 5 or 2 and 1 (of two, 4), become one token in the lower slot; contents move up, so
    that the lowest slots hold what was kept, and the next cut keeps these again.
    """
    visual = [state(weight, topic=2.0) for weight in (3, 4, 9, 1, 2, 6, 1)]
    about = [state(asks=ask, topic=2.0) for ask in asks]
    model = by_hand(3, (ASKS, ASKS))
    method = SparseVLM(version="first", after=(1, 2), counts=counts, scale=2.5, bias=0.6)
    trace, *inputs = run(monkeypatch, model, method, [state(), *visual, *about, state()], range(1, 8))
    fields: dict[str, Any] = {"after": (1, 2), "counts": tuple((count, 0) for count in counts)}
    slow = slow_sparsevlm(model, *inputs, version="first", scale=2.5, bias=0.6, **fields)
    assert kept(trace) == slow.kept == stages


@pytest.mark.parametrize(
    ("rows", "rank"),
    [
        ([[0.5, 0.25, 0.125], [0.25, 0.125, 0.0625]], 1),
        ([[0.5, 0.25, 0.125], [0.25, 0.125, 0.0625], [0.0, 0.0, 0.5]], 2),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 2),  # no more than columns
        ([[0.1, 0.2], [0.1, 0.2 + 1e-9]], 1),  # float32 cannot tell
        ([[0.0, 0.0]], 0),
    ],
)
def test_ranks_by_hand(rows, rank):
    """Of what the raters pay."""
    assert rank_of(rows) == int(torch.linalg.matrix_rank(torch.tensor(rows))) == rank


@given(
    case=CASES,
    counts=st.lists(st.integers(1, 16), min_size=4, max_size=4, unique=True).map(sorted),
    scale=st.sampled_from([0.8, 1.5, 3.0]),
    bias=st.sampled_from([0.0, 2.5]),
)
@everywhere(counts=[3, 6, 9, 14], scale=1.5, bias=1.0)
@settings(EXAMPLES, max_examples=6)
def test_the_first_release_equals_the_slow_reference(case: Case, counts: list[int], scale: float, bias: float) -> None:
    """Four cuts by rank: kept tokens, and logits of prefill and eight steps."""
    depths, bounds = (1, 2, 4, 5), tuple(counts[::-1])
    method = SparseVLM(version="first", after=depths, counts=bounds, scale=scale, bias=bias)
    fields: dict[str, Any] = {"after": depths, "counts": tuple((count, 0) for count in bounds)}
    slow = {**fields, "version": "first", "scale": scale, "bias": bias}
    check(case, method, lambda *inputs: slow_sparsevlm(*inputs, **slow))
