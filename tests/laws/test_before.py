"""The laws for methods that act before the language model; that they choose right is what their references say.

Laws 8 to 11 also for methods inside it that the files of these laws leave to this one.
"""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.errors import FamilyError, UnsupportedError
from swiftvlm.methods.base import Method
from swiftvlm.methods.cdpruner import CDPruner
from swiftvlm.methods.divprune import DivPrune
from swiftvlm.methods.hiprune import HiPrune
from swiftvlm.methods.holov import HoloV
from swiftvlm.methods.nuwa import Nuwa
from swiftvlm.methods.prumerge import PruMerge, PruMergePlus
from swiftvlm.methods.star import Star
from swiftvlm.methods.tome import ToMe
from swiftvlm.methods.visionzip import VisionZip
from swiftvlm.methods.vispruner import VisPruner
from swiftvlm.methods.vitcop import ViTCoP
from swiftvlm.methods.vscan import VScan
from swiftvlm.shape import ModelShape
from swiftvlm.tower import Seen
from tests.laws.cases import METHODS as IN_MODEL
from tests.laws.cases import (
    SETTINGS,
    answering,
    crossed,
    equal_rows,
    keeping_all,
    mixed_batch,
    mixed_rows,
    text_ids,
    visual_slots,
)
from tests.support import LAYERS, batch_of, make_row, tiny
from tests.test_unknown_family import announced, vip_llava


def by_question(seen: Seen) -> Tensor:
    """A relevance that depends on picture and text."""
    return seen.embeds.float()[:, 0] * (1 + seen.text.sum() % 7)


METHODS: dict[str, Method] = {
    "visionzip": VisionZip(counts=(5, 2)),
    "vispruner": VisPruner(counts=(6,)),
    "prumerge": PruMerge(counts=(6,)),
    "prumerge+": PruMergePlus(counts=(9,)),
    "divprune": DivPrune(counts=(7,)),
    "hiprune": HiPrune(counts=(8,), alpha=0.6),
    "holov": HoloV(counts=(6,), crops=4),
    "vscan": VScan(after=(3,), counts=(7, 3)),
    "nuwa": Nuwa(after=(3,), counts=(6, 3)),
    "cdpruner": CDPruner(counts=(6,), relevance=by_question),
    "tome": ToMe(counts=(6,)),
    "star": Star(after=(3,), counts=(7, 3)),
    "vitcop": ViTCoP(after=(2, 5), counts=(9, 0, 4, 3, 2)),
    "true positions": VisPruner(counts=(6,), positions="original"),
}
# What feeds patches as they are: with all of them, nothing may change.
CHOOSING = {
    name: METHODS[name]
    for name in ("vispruner", "divprune", "hiprune", "holov", "cdpruner", "tome", "star", "true positions")
}
# Both families, attentions and sides; each method in two of the four.
FOUR = [SETTINGS[0], SETTINGS[1], SETTINGS[5], SETTINGS[7]]
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
INSIDE = {name: IN_MODEL[name] for name in ("dart", "topv", "greedyprune", "ivcprune", "sparsevlm", "sparsevlm+")}
EVERY = METHODS | INSIDE
every_one = pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)


@crossed(CHOOSING, FOUR)
def test_keeping_everything_is_vanilla(method, setting):
    """Law 1, bit for bit, an answer behind it included."""
    batch, model = mixed_batch(setting), setting.model
    steps = 3 if setting.side == "left" else 0
    plain = answering(model, batch, text_ids(4, steps), positions=True)
    with swiftvlm.prune(model, keeping_all(method)) as trace:
        kept = answering(model, batch, text_ids(4, steps), positions=True)
    assert torch.equal(kept[0].logits, plain[0].logits)
    assert torch.equal(kept[1], plain[1])
    assert [row.tolist() for row in trace.kept[0]] == [visual_slots(batch, row) for row in range(4)]


@crossed(METHODS, FOUR)
def test_planned_is_cached_is_counted(method, setting):
    """Law 3: the cache's length in every layer, the logits', the trace's and the plan's."""
    batch, model = mixed_batch(setting, seed=7), setting.model
    with swiftvlm.prune(model, method) as trace:
        out = model(**batch)
    shape = ModelShape.of(model)
    text = [int(real) - seen for real, seen in zip(batch["attention_mask"].sum(1), trace.visual, strict=True)]
    plans = [swiftvlm.plan(method, None, shape, seen, other) for seen, other in zip(trace.visual, text, strict=True)]
    assert trace.per_row == tuple(plan.tokens_per_layer for plan in plans)
    for layer, cached in enumerate(out.past_key_values.layers):
        longest = max(row[layer] + other for row, other in zip(trace.per_row, text, strict=True))
        assert cached.keys.shape[-2] == longest
    assert trace.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
    # What is kept was there, and is named once; [CLS] and the like stand for no patch.
    for row in range(4):
        kept, whole = trace.kept[0][row].tolist(), visual_slots(batch, row)
        assert kept == sorted(set(kept))
        assert set(kept) <= set(whole)


@crossed(METHODS, FOUR)
def test_a_batch_is_its_rows_alone(method, setting):
    """Law 6: one, two and no image; on the left with an answer behind."""
    model, rows = setting.model, list(mixed_rows(setting.model, seed=11))
    answer = text_ids(4, 2 if setting.side == "left" else 0)
    batch = batch_of(model, rows, side=setting.side)
    with swiftvlm.prune(model, method) as together:
        out, steps = answering(model, batch, answer, positions=True)
    for index, row in enumerate(rows):
        with swiftvlm.prune(model, method) as alone:
            own, own_steps = answering(model, batch_of(model, [row]), answer[index : index + 1], positions=True)
        offset = len(batch["input_ids"][0]) - len(row.ids) if setting.side == "left" else 0
        told = [(stage[index] - offset).tolist() for stage in together.kept]
        assert told == ([stage[0].tolist() for stage in alone.kept] or [[]] * len(told))
        gap = (out.logits[index] - own.logits[0, -1]).abs().amax(-1)
        assert float(gap[-1] if setting.side == "left" else gap.min()) < 1e-5
        torch.testing.assert_close(steps[index], own_steps[0], atol=1e-5, rtol=0)


@every_one
def test_left_as_found(method):
    """Law 8: no hook is left on tower, projector or layers, also behind an error."""
    model = tiny()
    batch = batch_of(model, [make_row(model, 0)])
    plain, before = model(**batch).logits, _hooks(model)
    with swiftvlm.prune(model, method):
        model(**batch)
        assert _hooks(model) > before
    with pytest.raises(UnsupportedError), swiftvlm.prune(model, method):
        model(**batch, labels=batch["input_ids"])
    assert _hooks(model) == before
    assert torch.equal(model(**batch).logits, plain)


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@every_one
def test_no_ops_are_exact(method):
    """Law 9: text alone, and rows within an int budget."""
    model = tiny()
    for row in (make_row(model, 0, images=0), make_row(model, 1)):
        batch = batch_of(model, [row])
        plain = model(**batch).logits
        with swiftvlm.prune(model, _by_budget(method), budget=16):
            assert torch.equal(model(**batch).logits, plain)


def _by_budget(method: Method) -> Method:
    fields: dict[str, Any] = dict(method.__dict__)
    return type(method)(**fields | {"counts": None})


@every
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_budget_is_kept(method, family):
    """Measured tokens stay within 9 on average and come close to it."""
    model = tiny(family)
    batch = batch_of(model, equal_rows(model))
    with swiftvlm.prune(model, _by_budget(method), budget=9) as trace:
        model(**batch)
    for row in trace.per_row:
        assert 7.5 < sum(row) / LAYERS <= 9


@every_one
def test_the_same_with_both_attentions(method):
    """Law 10: SDPA and eager choose the same tokens, run after run."""
    found = []
    for attn in ("sdpa", "eager", "sdpa"):
        model = tiny("llava", 4, attn)
        with swiftvlm.prune(model, method) as trace:
            logits = model(**batch_of(model, list(mixed_rows(model)))).logits[:, -1]
        found.append(([[row.tolist() for row in stage] for stage in trace.kept], logits))
    assert found[0][0] == found[1][0] == found[2][0]
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)
    assert torch.equal(found[0][1], found[2][1])


@every_one
@pytest.mark.parametrize("ways", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_generate_is_prefill_and_steps(method, ways):
    """Law 11: a greedy answer is that of single steps; beams and samples repeat and share their prompt's choice."""
    model = tiny()
    batch = batch_of(model, [make_row(model, 0, text=3), make_row(model, 1, text=6)])
    found: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(0)
        with swiftvlm.prune(model, method) as trace:
            found.append(model.generate(**batch, max_new_tokens=5, min_new_tokens=5, pad_token_id=0, **ways))
    assert torch.equal(found[0], found[1])
    copies = len(trace.kept[0]) // 2
    assert [trace.kept[0][0].tolist()] * copies == [trace.kept[0][i].tolist() for i in range(copies)]
    if not ways:
        answer = found[0][:, -5:]
        with swiftvlm.prune(model, method):
            out, steps = answering(model, batch, answer, positions=True)
        best = torch.cat([out.logits[:, -1:], steps], dim=1).argmax(-1)
        assert torch.equal(best[:, :5], answer)


def test_an_image_at_the_end_of_its_prompt():
    """Law 5: the last prompt token is never dropped, also when it is visual."""
    model = tiny()
    row = make_row(model, 0)
    row.ids[:] = row.ids[: max(i for i, token in enumerate(row.ids) if token == 60) + 1]
    batch = batch_of(model, [row])
    with swiftvlm.prune(model, VisPruner(counts=(5,))) as trace:
        out = model(**batch)
    assert len(trace.kept[0][0]) == 5
    assert len(row.ids) - 1 not in trace.kept[0][0].tolist()
    assert out.logits.shape[1] == len(row.ids) - 16 + 1 + 5


def test_features_from_elsewhere_are_refused():
    """Nothing is known of pictures that were encoded before the `with`."""
    model = tiny()
    batch = batch_of(model, [make_row(model, 0)])
    embeds = _embedded(model, batch)
    with swiftvlm.prune(model, VisPruner(counts=(5,))), pytest.raises(UnsupportedError, match="pass pixel_values"):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **embeds)


def _embedded(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
    encoded = model.get_image_features(pixel_values=batch["pixel_values"], return_dict=True)
    return {"mm_encoder_outputs": {"image": encoded}}


def test_groups_are_numbered_by_their_anchors():
    """Also where tiles stand side by side, so that their rows take turns in the sequence."""
    model = tiny("llava_next")
    row = make_row(model, 3, sizes=[(20, 56)])
    with swiftvlm.prune(model, VisionZip(counts=(12, 18))) as trace:
        model(**batch_of(model, [row]))
    tiles = trace.cells[0][:, 1]
    assert (tiles.diff() < 0).any()
    anchors, groups = trace.anchors[0][0].tolist(), trace.groups[0][0]
    candidates = trace.candidates[0][0].tolist()
    assert len(anchors) == 18
    assert [int(groups[candidates.index(anchor)]) for anchor in anchors] == list(range(18))


def test_pictures_are_let_go_where_nothing_is_cut():
    """Prompts within their budget never look at the tower; what it saw must not pile up."""
    model = tiny()
    handle = swiftvlm.prune(model, VisionZip(), budget=16)
    with handle:
        for seed in range(3):
            model(**batch_of(model, [make_row(model, seed)]))
        assert len(handle.watch.tiles) == 1


def test_a_later_turn_is_refused():
    """Its prompt's cache is shorter than the conversation."""
    model = tiny()
    batch = batch_of(model, [make_row(model, 0)])
    with swiftvlm.prune(model, VisionZip(counts=(4, 2))):
        out = model(**batch)
        with pytest.raises(UnsupportedError, match="cut before the language model"):
            model(input_ids=text_ids(1, 3), past_key_values=out.past_key_values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every
def test_half_precision(method, dtype):
    """Law 12: it runs, keeps its counts, and its answer is finite."""
    # A copy: other tests share the model, and its weights would come back rounded.
    model = deepcopy(tiny()).to(dtype)
    batch = batch_of(model, list(mixed_rows(tiny())))
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    with swiftvlm.prune(model, method) as trace:
        logits = model(**batch).logits
    assert torch.isfinite(logits[:, -1]).all()
    assert trace.per_row[0][0] == method.plan(ModelShape.of(model), 16, 5).tokens_per_layer[0]


def test_families_without_a_tower_are_told():
    """A method before the language model on a family that does not know its tower."""
    with pytest.raises(FamilyError, match="before the language model"), announced("vipllava"):
        swiftvlm.prune(vip_llava(), "visionzip", budget=9)
