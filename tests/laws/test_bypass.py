"""Law 7: with one-token groups a bypass loses nothing; with larger groups it loses something, and only then."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from tests.laws.cases import (
    SETTINGS,
    Setting,
    answering,
    crossed,
    mixed_batch,
    mixed_rows,
    text_ids,
    watching,
)
from tests.laws.replay import Recorded
from tests.support import batch_of

CLOSE = 1e-5
SWIFT = swiftvlm.SwiftVLM(layers=(2, 4, 6), counts=(5, 999, 7, 999, 999))
LOSSLESS = {
    "bypass": SWIFT,
    "merge": replace(SWIFT, rest="merge"),
    "mixed": replace(SWIFT, rest=("bypass", "merge")),
    "top": replace(SWIFT, anchors="top"),
    "refined": replace(SWIFT, refine=2),
    "mean": replace(SWIFT, merged_position="mean"),
    "renumbered": replace(SWIFT, positions="renumbered"),
    "deep": replace(SWIFT, layers=(1, 7), counts=(1, 999, 999)),
}


@crossed(LOSSLESS, SETTINGS)
def test_groups_of_one_token_lose_nothing(method, setting):
    """As many groups as unselected tokens and no cut at the last stage: vanilla to rounding, answers too."""
    model, batch = setting.model, mixed_batch(setting, seed=300)
    answer = text_ids(len(batch["input_ids"]), 2)
    plain, plain_steps = answering(model, batch, answer)
    with swiftvlm.prune(model, method) as trace:
        pruned, steps = answering(model, batch, answer)
    torch.testing.assert_close(pruned.logits, plain.logits, atol=CLOSE, rtol=0)
    torch.testing.assert_close(steps, plain_steps, atol=CLOSE, rtol=0)
    assert len(trace.anchors[0][0]) == trace.visual[0] - method.counts[0] > 0


def restored(setting: Setting, method: swiftvlm.SwiftVLM) -> tuple[swiftvlm.Trace, list[Any], list[Any], list[Any]]:
    """One row: the trace, the views of every stage, and what each layer is given with and without the method."""
    model, batch = setting.model, batch_of(setting.model, mixed_rows(setting.model, seed=310)[:1])
    with watching(model) as uncut:
        model(**batch)
    recorded = Recorded(method)
    with swiftvlm.prune(model, recorded) as trace, watching(model) as looks:
        model(**batch)
    return trace, [view for _, view in recorded.heard], looks, uncut


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 10, 11, 12])
@pytest.mark.parametrize("after", [3, 5])
def test_restored_states_err_only_where_a_group_has_several_tokens(groups, after):
    """Against the same run uncut: 11 tokens are bypassed, so 11 groups are exact, fewer are not, more cannot be."""
    method = swiftvlm.SwiftVLM(layers=(2, after + 1), counts=(5, groups, 16))
    trace, views, _, uncut = restored(SETTINGS[0], method)
    error = (views[1].hidden - uncut[after].hidden).abs().amax(-1)[0]
    sizes = trace.groups[0][0][trace.groups[0][0] >= 0].bincount()
    assert (len(sizes), int(sizes.sum())) == (min(groups, 11), 11)
    assert bool(sizes.max() == 1) == (groups >= 11)
    bypassed = trace.candidates[0][0][trace.groups[0][0] >= 0]
    if groups >= 11:
        assert error.max() < CLOSE
    else:
        assert error[bypassed].max() > 1e-2


@pytest.mark.parametrize("groups", [1, 3, 8])
@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[6]], ids=str)
def test_restored_states_are_aligned_by_their_groups_offset(groups, setting):
    """Eqs. 12-13: a member moves by what its merged token went through; tokens that ran the layers are exact."""
    method = swiftvlm.SwiftVLM(layers=(2, 4, 6), counts=(5, groups, 4, groups, 3))
    trace, views, looks, uncut = restored(setting, method)
    before = uncut[2].hidden[0]
    for number, following in enumerate([3, 5]):
        slots = alive_slots(trace, views[number], number)
        through = dict(zip(slots, layer_output(setting.model, looks, following - 1), strict=True))
        state, groups_of = views[number + 1].hidden[0], trace.groups[number][0]
        candidates = trace.candidates[number][0].tolist()
        for rank, anchor in enumerate(trace.anchors[number][0].tolist()):
            members = [slot for slot, group in zip(candidates, groups_of.tolist(), strict=True) if group == rank]
            offset = through[anchor] - before[members].mean(0)
            torch.testing.assert_close(state[members], before[members] + offset, atol=CLOSE, rtol=0)
        for slot in set(slots) - set(trace.anchors[number][0].tolist()):
            assert torch.equal(state[slot], through[slot])
        before = state


def alive_slots(trace: swiftvlm.Trace, view: Any, number: int) -> list[int]:
    """The slots that run the layers behind a stage, in order."""
    gone = set(trace.candidates[number][0].tolist())
    gone -= set(trace.kept[number][0].tolist()) | set(trace.anchors[number][0].tolist())
    return [slot for slot in view.slot[0].tolist() if slot not in gone]


def layer_output(model: nn.Module, looks: list[Any], layer: int) -> Tensor:
    """What layer `layer` (0-based) makes of what it was given."""
    look = looks[layer]
    made = model.model.language_model.layers[layer](
        look.hidden, attention_mask=look.mask, position_embeddings=look.rotary
    )
    return (made if isinstance(made, Tensor) else made[0])[0]


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[5]], ids=str)
def test_a_bypassed_token_can_be_kept_later(setting):
    """What only a bypass can do: tokens kept at a later stage that an earlier one had not kept; none under a drop."""
    model, batch = setting.model, mixed_batch(setting, seed=320)
    counts = (6, 3, 5, 2, 4)
    with swiftvlm.prune(model, swiftvlm.SwiftVLM(layers=(2, 4, 6), counts=counts)) as bypass:
        model(**batch)
    with swiftvlm.prune(model, swiftvlm.SwiftVLM(layers=(2, 4, 6), counts=counts, rest="drop")) as drop:
        model(**batch)
    for row, visual in enumerate(bypass.visual):
        first, second = (set(bypass.kept[number][row].tolist()) for number in (0, 1))
        assert (len(second - first) > 0) == (visual > 0)
        assert len(bypass.candidates[1][row]) == visual
        assert set(drop.kept[1][row].tolist()) <= set(drop.kept[0][row].tolist())
