"""Law 5: `kept` ascends, positions are the originals unless renumbered, and the last prompt token is never dropped."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.stage import Stage
from swiftvlm.trace import Run
from tests.laws.cases import (
    METHODS,
    SETTINGS,
    SWIFT,
    Look,
    alive,
    counted,
    crossed,
    every_pruning,
    last_slot,
    mixed_batch,
    real_tokens,
    stage_before,
    stages_of,
    visual_slots,
    watching,
)
from tests.laws.replay import Scored
from tests.support import IMAGE, LAYERS, batch_of, make_row, tiny


@dataclass(frozen=True)
class EarlierFirst:
    """A score that likes a token the less the later it comes: the last one would go first of all."""

    probe: None = None

    def rate(self, view: Any) -> Tensor:
        """Minus the slot."""
        return -view.slot.float()


def check_kept(
    model: nn.Module, method: Method, batch: dict[str, Tensor], positions: Tensor | None = None
) -> swiftvlm.Trace:
    """Kept tokens and anchors ascend, are apart, and were candidates; every layer has the positions it should.

    `positions`: position ids to call the model with; otherwise each token's is its place, padding counted.
    """
    with swiftvlm.prune(model, method) as trace, watching(model) as looks:
        model(**batch, position_ids=positions)
    if positions is None:
        positions = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    for number in range(len(trace.kept)):
        for row in range(len(batch["input_ids"])):
            kept, anchors = trace.kept[number][row].tolist(), trace.anchors[number][row].tolist()
            candidates = trace.candidates[number][row].tolist()
            for slots in (kept, anchors, candidates):
                assert slots == sorted(set(slots))
            assert not set(kept) & set(anchors)
            assert set(kept) | set(anchors) <= set(candidates) <= set(visual_slots(batch, row))
    check_positions(model, batch, trace.last, stages_of(method, model), looks, positions)
    return trace


def check_positions(
    model: nn.Module,
    batch: dict[str, Tensor],
    run: Run,
    stages: tuple[Stage, ...],
    looks: list[Look],
    positions: Tensor,
) -> None:
    """At each layer, cos and sin of a real token are those of its slot, or of its rank where the stage renumbers."""
    assert len(looks) == LAYERS
    for layer, look in enumerate(looks):
        number = stage_before(stages, layer)
        for row in range(len(batch["input_ids"])):
            ids = positions[row, alive(batch, run, row, number)]
            if number >= 0 and stages[number].positions == "renumbered":
                ids = ids[0] + torch.arange(len(ids))
            expected = model.model.language_model.rotary_emb(look.hidden, ids[None])
            for given, wanted in zip(look.rotary, expected, strict=True):
                given = given.expand(len(look.hidden), -1, -1)
                there = real_tokens(batch, row, given, len(ids))
                torch.testing.assert_close(there, wanted[0], atol=1e-6, rtol=0)


def check_last_token(batch: dict[str, Tensor], trace: swiftvlm.Trace) -> None:
    """No stage may choose the last prompt token of a row, so none may drop it; it counts as text."""
    for row in range(len(batch["input_ids"])):
        last = last_slot(batch, row)
        for stage in (*trace.candidates, *trace.kept, *trace.anchors):
            assert last not in stage[row].tolist()
        real = int(batch["attention_mask"][row].sum())
        assert trace.text[row] == real - len(visual_slots(batch, row)) >= 1


@crossed(METHODS, SETTINGS)
def test_kept_ascends_at_original_positions(method, setting):
    """Padded batches; positions as the model counts them, and as `generate` gives them: without padding."""
    batch = mixed_batch(setting, seed=100)
    positions = counted(batch["attention_mask"]) if setting.kv_heads == 2 else None
    check_last_token(batch, check_kept(setting.model, method, batch, positions))


@every_pruning
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_last_token_that_is_visual_stays(method, side, family):
    """Prompts that end in an image, beside one that does not: their last visual token runs through every layer."""
    model = tiny(family, 2)
    rows = [make_row(model, 110 + n, images=n, text=text, sizes=[(20, 56)] * 2) for n, text in ((1, 0), (2, 0), (1, 5))]
    batch = batch_of(model, rows, side=side)
    check_last_token(batch, check_kept(model, method, batch))
    assert [int(batch["input_ids"][row, last_slot(batch, row)]) == IMAGE for row in range(3)] == [True, True, False]


@every_pruning
@pytest.mark.parametrize(("family", "side"), [("llava", "left"), ("llava_next", "right")])
def test_no_score_can_drop_the_last_token(method, family, side):
    """Even a score that ranks it last of all, at counts of one, where it is visual and padding follows."""
    model = tiny(family)
    rows = [make_row(model, 120, text=0), make_row(model, 121, images=2, text=0)]
    batch = batch_of(model, rows, side=side, extra=2)
    one = Scored(replace(method, counts=(1,) * len(method.counts)), EarlierFirst())
    trace = check_kept(model, one, batch)
    check_last_token(batch, trace)
    for stage in trace.kept[:1]:
        assert [slots.tolist() for slots in stage] == [visual_slots(batch, row)[:1] for row in range(2)]


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[5]], ids=str)
def test_a_merged_token_may_turn_with_the_mean_of_its_members(setting):
    """`merged_position="mean"` moves the anchors to their members' mean position, and nothing else."""
    model, batch = setting.model, mixed_batch(setting, seed=130)
    method = swiftvlm.SwiftVLM(**SWIFT, merged_position="mean")
    with swiftvlm.prune(model, method) as trace, watching(model) as looks:
        model(**batch)
    for row in range(len(batch["input_ids"])):
        slots, groups = trace.candidates[0][row], trace.groups[0][row]
        position = torch.arange(batch["input_ids"].shape[1]).float()
        for rank, anchor in enumerate(trace.anchors[0][row].tolist()):
            position[anchor] = slots[groups == rank].float().mean()
        expected = position[alive(batch, trace.last, row, 0)]
        look = looks[method.layers[0]]
        cos, sin = model.model.language_model.rotary_emb(look.hidden, expected[None])
        for given, wanted in zip(look.rotary, (cos, sin), strict=True):
            torch.testing.assert_close(real_tokens(batch, row, given, len(expected)), wanted[0], atol=1e-6, rtol=0)
