"""Law 2: cutting tokens equals a full-length run that hides them, and replaces anchors' states at each stage.

The full-length run is the Hugging Face model itself: hooks hide keys in its mask and overwrite states, nothing is ever
shortened, and nothing is shared with the engine. It takes the choice (kept, anchors, groups) from the engine's trace.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.stage import Bypass, Merge, Stage
from swiftvlm.trace import Run
from tests.laws.before import METHODS as BEFORE
from tests.laws.cases import (
    METHODS,
    PRUNING,
    SETTINGS,
    SWIFT,
    Setting,
    alive,
    crossed,
    mixed_batch,
    mixed_rows,
    real_tokens,
    stage_before,
    stages_of,
    watching,
)
from tests.reference.slow_methods import embed_row, slow_swiftvlm
from tests.support import IMAGE, LAYERS, batch_of, features_of, make_row, tiny

CLOSE = 1e-5


@dataclass
class Group:
    """Bypassed tokens of one row that share a merged token."""

    row: int
    anchor: int
    members: list[int]
    stored: Tensor
    mean: Tensor


class FullLength:
    """A pre-hook for every layer of an eager model: at each stage of a run, hide what it dropped and merge the rest."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor], run: Run, stages: tuple[Stage, ...]) -> None:
        self.rotary, self.run, self.stages = model.model.language_model.rotary_emb, run, stages
        self.attended = batch["attention_mask"].bool()
        self.batch, self.shown, self.waiting = batch, self.attended.clone(), []
        self.position: Tensor | None = None

    def hook(self, index: int) -> Any:
        """The hook of one layer."""

        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = self.at_stage(index, args[0].clone())
            lowest = torch.finfo(hidden.dtype).min
            kwargs["attention_mask"] = kwargs["attention_mask"].masked_fill(~self.shown[:, None, None, :], lowest)
            if self.position is not None:
                kwargs["position_embeddings"] = self.rotary(hidden, self.position)
            return (hidden, *args[1:]), kwargs

        return before

    def at_stage(self, index: int, hidden: Tensor) -> Tensor:
        """Restore and merge where a stage acts before this layer."""
        for number, stage in enumerate(self.stages):
            if stage.after != index or not self.run.kept:
                continue
            self.restore(hidden)
            if stage.positions == "gapped":
                self.position = self.counted()
            for row in range(len(hidden)):
                self.shown[row] = False
                self.shown[row, alive(self.batch, self.run, row, number)] = True
                for group in self.groups(number, row, hidden):
                    own = hidden[row, group.anchor] if isinstance(stage.rest, Merge) and stage.rest.added else 0
                    hidden[row, group.anchor] = own + group.mean
                    self.waiting += [group] if isinstance(stage.rest, Bypass) else []
            if stage.positions == "renumbered":
                self.position = self.counted()
        return hidden

    def counted(self) -> Tensor:
        """What is shown, counted from each row's first token."""
        first = self.attended.int().argmax(1, keepdim=True)
        return torch.where(self.shown, first + self.shown.cumsum(1) - 1, 0)

    def restore(self, hidden: Tensor) -> None:
        """Every waiting member moves by what its merged token went through."""
        for group in self.waiting:
            hidden[group.row, group.members] = group.stored + (hidden[group.row, group.anchor] - group.mean)
        self.waiting = []

    def groups(self, number: int, row: int, hidden: Tensor) -> Iterator[Group]:
        """The groups that the run formed at a stage."""
        slots, of = self.run.candidates[number][row], self.run.groups[number][row]
        for rank, anchor in enumerate(self.run.anchors[number][row].tolist()):
            members = slots[of == rank].tolist()
            stored = hidden[row, members]
            yield Group(row, anchor, members, stored, stored.mean(0))


@contextmanager
def full_length(model: nn.Module, batch: dict[str, Tensor], run: Run, stages: tuple[Stage, ...]) -> Iterator[None]:
    """`FullLength` hooks on all layers."""
    full = FullLength(model, batch, run, stages)
    layers = enumerate(model.model.language_model.layers)
    hooks = [layer.register_forward_pre_hook(full.hook(index), with_kwargs=True) for index, layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_gather_is_mask(setting: Setting, method: Any, batch: dict[str, Tensor]) -> None:
    """The states that every layer is given, and the logits, of every token that is still there."""
    model, stages = setting.model, stages_of(method, setting.model)
    with swiftvlm.prune(model, method) as trace, watching(model) as cut:
        pruned = model(**batch).logits
    eager = tiny(setting.family, setting.kv_heads, "eager")
    with full_length(eager, batch, trace.last, stages), watching(eager) as masked:
        whole = eager(**batch).logits
    depths = [(index, look.hidden, masked[index].hidden) for index, look in enumerate(cut)]
    assert len(depths) == LAYERS
    for index, short, full in [*depths, (LAYERS - 1, pruned, whole)]:
        for row in range(len(whole)):
            slots = alive(batch, trace.last, row, stage_before(stages, index))
            there, expected = real_tokens(batch, row, short, len(slots)), full[row, slots]
            # Of the largest entry, up to 5: two kernels round relative to it, on some processors by over 1e-5.
            close = CLOSE * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(there, expected, atol=close, rtol=CLOSE)


# SparseVLM's merged tokens change places, which a full-length run with a slot a token cannot show; that its cuts are
# right is what its own reference says, which has full-size masks too.
STAYING = {name: method for name, method in PRUNING.items() if name != "sparsevlm"}


@crossed(STAYING, SETTINGS)
def test_cutting_equals_hiding(method, setting):
    """Padded batches with one, two and no image; SDPA against the eager full-length run, too."""
    check_gather_is_mask(setting, method, mixed_batch(setting, seed=10))


@pytest.mark.parametrize(
    "fields",
    [
        {"rest": ("drop", "bypass")},
        {"rest": ("merge", "bypass")},
        {"anchors": "top", "refine": 1},
        {"rest": "drop", "positions": "renumbered"},
        {"rest": "merge", "positions": "renumbered"},
        {"counts": (1, 1, 1, 1, 1)},
        {"counts": (1, 40, 30, 1, 1)},
        {"layers": (1, 3, 7)},
    ],
    ids=str,
)
@pytest.mark.parametrize("setting", [Setting("llava", 2, "sdpa", "left"), Setting("llava_next", 4, "sdpa", "right")])
def test_every_mix_of_fates_equals_hiding(fields, setting):
    """Stages that differ in what they do with the rest, odd counts, the first and the last layer."""
    check_gather_is_mask(setting, swiftvlm.SwiftVLM(**{**SWIFT, **fields}), mixed_batch(setting, seed=20))


@pytest.mark.parametrize("rest", ["bypass", "merge"])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_states_behind_each_stage_are_the_slow_references(rest, family):
    """The slow reference never cuts: its present slots and their states are what the layer behind a stage is given."""
    model = tiny(family, 2)
    row = make_row(model, 3, sizes=[(28, 28)])
    method = swiftvlm.SwiftVLM(**SWIFT, rest=rest)
    with swiftvlm.prune(model, method) as trace, watching(model) as looks:
        logits = model(**batch_of(model, [row])).logits
    ids = torch.tensor(row.ids)
    slow = slow_swiftvlm(
        model, embed_row(model, ids, **features_of(model, row)), ids == IMAGE, len(ids), mode=rest, **SWIFT
    )
    assert [look.hidden.shape[1] for look in looks] == [len(slots) for slots in slow.present]
    for number, stage in enumerate(stages_of(method, model)):
        assert trace.kept[number][0].tolist() == slow.kept[number]
        present = slow.present[stage.after]
        assert present == alive(batch_of(model, [row]), trace.last, 0, number)
        expected = slow.states[number][present]
        torch.testing.assert_close(looks[stage.after].hidden[0], expected, atol=CLOSE, rtol=CLOSE)
    torch.testing.assert_close(logits[0], slow.logits[slow.present[-1]], atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("name", ["fastv", "swiftvlm", "renumbered"])
def test_hiding_something_else_is_seen(name):
    """The full-length run notices when one kept token is another one."""
    setting = Setting("llava", 4, "eager", "left")
    model, method = setting.model, METHODS[name]
    batch = batch_of(model, mixed_rows(model)[:1])
    with swiftvlm.prune(model, method) as trace:
        pruned = model(**batch).logits
    run = trace.last
    other = next(slot for slot in run.candidates[0][0].tolist() if slot not in alive(batch, run, 0, 0))
    wrong = torch.tensor([other, *run.kept[0][0].tolist()[1:]])
    run.kept[0][0].copy_(wrong)
    with full_length(model, batch, run, stages_of(method, model)):
        whole = model(**batch).logits
    assert (whole[0, -1] - pruned[0, -1]).abs().max() > 10 * CLOSE


@pytest.mark.parametrize("name", ["vscan", "nuwa", "star", "vitcop"])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_cuts_behind_a_cut_before_the_model_equal_hiding(name, family):
    """What layer 0 was given is the prompt here: fed again at full length, later cuts hide and merge in it."""
    model, method = tiny(family, 2), BEFORE[name]
    batch = batch_of(model, [make_row(model, 25)])
    with swiftvlm.prune(model, method) as trace, watching(model) as cut:
        pruned = model(**batch).logits
    slots = torch.tensor(alive(batch, trace.last, 0, 0))
    ids = batch["input_ids"][:, slots]
    short = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    stages, run = stages_of(method, model), within(trace.last, slots)
    positions = slots[None] if method.reduction.positions == "original" else torch.arange(len(slots))[None]
    eager = tiny(family, 2, "eager")
    with full_length(eager, short, run, stages), watching(eager) as masked:
        states = eager.model.language_model(inputs_embeds=cut[0].hidden, position_ids=positions, attention_mask=None)
    whole = eager.lm_head(states.last_hidden_state)
    depths = [(index, look.hidden, masked[index].hidden) for index, look in enumerate(cut)]
    assert len(depths) == LAYERS
    for index, there, full in [*depths, (LAYERS - 1, pruned, whole)]:
        left = alive(short, run, 0, stage_before(stages, index))
        torch.testing.assert_close(there[0], full[0, left], atol=CLOSE, rtol=CLOSE)


def within(run: Run, slots: Tensor) -> Run:
    """The stages behind the first, in places among the slots that it left."""
    parts = {name: getattr(run, name)[1:] for name in ("kept", "anchors", "candidates")}
    found = {name: tuple((torch.searchsorted(slots, stage[0]),) for stage in stages) for name, stages in parts.items()}
    return replace(run, groups=run.groups[1:], **found)
