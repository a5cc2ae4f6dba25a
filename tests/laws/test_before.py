"""The laws for methods that act before the language model; that they choose right is what their references say.

Laws 8 to 11 also for methods inside it that the files of these laws leave to this one.
"""

from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.errors import FamilyError, UnsupportedError
from swiftvlm.methods.visionzip import VisionZip
from swiftvlm.methods.vispruner import VisPruner
from swiftvlm.shape import ModelShape
from swiftvlm.trace import Run
from tests.laws.before import CHOOSING, FOUR, METHODS, both, by_budget, every, every_one
from tests.laws.cases import (
    answering,
    crossed,
    equal_rows,
    keeping_all,
    mixed_batch,
    mixed_rows,
    text_ids,
    visual_slots,
)
from tests.laws.generation import snapshot
from tests.laws.test_dtypes import CLOSE as ROUGHLY
from tests.laws.test_left_as_found import breaking
from tests.support import IMAGE, LAYERS, Row, batch_of, make_row, tiny
from tests.test_unknown_family import announced, vip_llava


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
    for stage in trace.kept:
        assert [row.tolist() for row in stage] == [visual_slots(batch, row) for row in range(4)]


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
@both
def test_left_as_found(method, family):
    """Law 8: no hook, no attribute is left on tower, projector or layers, also behind an error and behind Ctrl-C."""
    model = tiny(family)
    batch = batch_of(model, [make_row(model, 0)])
    plain, before = model(**batch).logits, snapshot(model)
    with swiftvlm.prune(model, method):
        model(**batch)
        assert snapshot(model) != before
    with pytest.raises(UnsupportedError), swiftvlm.prune(model, method):
        model(**batch, labels=batch["input_ids"])
    broken = breaking(model.model.language_model.layers[4].mlp, KeyboardInterrupt)
    with broken, pytest.raises(KeyboardInterrupt), swiftvlm.prune(model, method):
        model(**batch)
    assert snapshot(model) == before
    assert torch.equal(model(**batch).logits, plain)


@every_one
@both
def test_no_ops_are_exact(method, family):
    """Law 9: text alone, also under counts, and rows within an int budget; an answer behind them included."""
    model, answer = tiny(family), text_ids(1, 2)
    text, row = make_row(model, 0, images=0), make_row(model, 1)
    within = row.ids.count(IMAGE)
    cases: list[tuple[Row, Any, int | None]]
    cases = [(text, method, None), (text, by_budget(method), within), (row, by_budget(method), within)]
    for prompt, pruning, budget in cases:
        batch = batch_of(model, [prompt])
        plain, steps = answering(model, batch, answer)
        with swiftvlm.prune(model, pruning, budget=budget) as trace:
            pruned, own = answering(model, batch, answer)
        assert torch.equal(pruned.logits, plain.logits)
        assert torch.equal(own, steps)
        assert trace.kept == ()


@every
@both
def test_a_budget_is_kept(method, family):
    """Measured tokens stay within 9 on average and come close to it."""
    model = tiny(family)
    batch = batch_of(model, equal_rows(model))
    with swiftvlm.prune(model, by_budget(method), budget=9) as trace:
        model(**batch)
    for row in trace.per_row:
        assert 7.5 < sum(row) / LAYERS <= 9


@every_one
@both
def test_the_same_with_both_attentions(method, family):
    """Law 10: SDPA and eager choose the same tokens, run after run."""
    found = []
    for attn in ("sdpa", "eager", "sdpa"):
        model = tiny(family, 4, attn)
        with swiftvlm.prune(model, method) as trace:
            logits = model(**batch_of(model, list(mixed_rows(model)))).logits[:, -1]
        found.append(([[row.tolist() for row in stage] for stage in trace.kept], logits))
    assert found[0][0] == found[1][0] == found[2][0]
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)
    assert torch.equal(found[0][1], found[2][1])


WAYS: list[dict[str, Any]] = [
    {},
    {"num_beams": 2, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 2},
]


@every_one
@both
@pytest.mark.parametrize("ways", WAYS, ids=["greedy", "beams", "samples"])
def test_generate_is_prefill_and_steps(method, family, ways):
    """Law 11: samples repeat, copies share their prompt's choice, and every score is that of a prefill and steps."""
    model = tiny(family)
    rows = [make_row(model, seed, text=text, sizes=[(20, 56)]) for seed, text in ((0, 3), (1, 6))]
    batch, details = batch_of(model, rows), dict[str, Any](output_logits=True, return_dict_in_generate=True)
    details |= {"output_scores": True, "max_new_tokens": 3, "suppress_tokens": [IMAGE]}
    found: list[Any] = []
    with swiftvlm.prune(model, method) as trace:
        for _ in range(2 if "do_sample" in ways else 1):
            torch.manual_seed(0)
            found.append(model.generate(**batch, **ways, **details))
    assert torch.equal(found[0].sequences, found[-1].sequences)
    for stage in trace.kept:
        kept, copies = [slots.tolist() for slots in stage], len(stage) // 2
        assert kept == [kept[0]] * copies + [kept[copies]] * copies
    compare_to_steps(model, method, rows, found[0], ways)


def compare_to_steps(model: nn.Module, method: Any, rows: list[Row], out: Any, ways: dict[str, Any]) -> None:
    """Logits of greedy and sampled answers, and the mean log-probability of beams, fed to the cache one by one."""
    copies = ways.get("num_return_sequences", 1)
    batch = batch_of(model, [row for row in rows for _ in range(copies)])
    answer = out.sequences[:, batch["input_ids"].shape[1] :]
    with swiftvlm.prune(model, method):
        first, steps = answering(model, batch, answer, positions=True)
    logits = torch.cat([first.logits[:, -1:], steps[:, :-1]], dim=1)
    if "num_beams" not in ways:
        torch.testing.assert_close(torch.stack(out.logits, dim=1), logits, atol=1e-5, rtol=0)
        return
    chosen = torch.log_softmax(logits, dim=-1).gather(2, answer[..., None])[..., 0]
    torch.testing.assert_close(out.sequences_scores, chosen.mean(1), atol=1e-5, rtol=0)


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


# By turns, each method meets the first and the third, or the others: both families, both dtypes.
class Rounded(NamedTuple):
    """A family's model in half precision."""

    family: str
    dtype: torch.dtype


HALVES = [
    Rounded("llava", torch.bfloat16),
    Rounded("llava", torch.float16),
    Rounded("llava_next", torch.float16),
    Rounded("llava_next", torch.bfloat16),
]


def decided(run: Run, row: int) -> list[Any]:
    """All that was chosen in a row, stage by stage."""
    return [[stage[row].tolist() for stage in part] for part in (run.kept, run.anchors, run.groups)]


@crossed(METHODS, HALVES)
def test_half_precision(method, setting):
    """Law 12: laws 1, 3, 8 and 9 as in float32; its logits, too, wherever the same patches were chosen."""
    family, dtype = setting
    # A copy: other tests share the model, and its weights would come back rounded.
    model = deepcopy(tiny(family)).to(dtype)
    batch, text = batch_of(model, list(mixed_rows(tiny(family)))), batch_of(model, [make_row(model, 0, images=0)])
    with swiftvlm.prune(tiny(family), method) as exact:
        wanted = tiny(family)(**batch).logits[:, -1]
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    plain, words, before = model(**batch).logits, model(**text).logits, snapshot(model)
    with swiftvlm.prune(model, method) as trace:
        logits = model(**batch).logits
        assert torch.equal(model(**text).logits, words)
    assert torch.isfinite(logits[:, -1]).all()
    same = [row for row in range(4) if decided(exact.last, row) == decided(trace.runs[0], row)]
    # The row without a picture is always among them.
    assert len(same) >= 2
    torch.testing.assert_close(logits[same, -1].float(), wanted[same], atol=ROUGHLY[dtype], rtol=0)
    for row, seen in zip(trace.runs[0].per_row, trace.runs[0].visual, strict=True):
        assert row == method.plan(ModelShape.of(model), seen, 5).tokens_per_layer
    assert snapshot(model) == before
    assert torch.equal(model(**batch).logits, plain)
    if method in CHOOSING.values():
        with swiftvlm.prune(model, keeping_all(method)):
            assert torch.equal(model(**batch).logits, plain)


def test_families_without_a_tower_are_told():
    """A method before the language model on a family that does not know its tower."""
    with pytest.raises(FamilyError, match="before the language model"), announced("vipllava"):
        swiftvlm.prune(vip_llava(), "visionzip", budget=9)
