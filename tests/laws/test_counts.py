"""Law 3: what the plan says = what the cache holds = what the trace counts, read from the tensors themselves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.methods.dart import Dart
from swiftvlm.methods.fastv import FastV, RandomTokens, UniformTokens
from swiftvlm.methods.feather import Feather
from swiftvlm.methods.greedyprune import GreedyPrune
from swiftvlm.methods.ivcprune import IVCPrune
from swiftvlm.methods.pdrop import PDrop
from swiftvlm.methods.sparsevlm import SparseVLM, SparseVLMPlus
from swiftvlm.methods.topv import TopV
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage
from tests.laws.cases import (
    CACHED,
    LEFT,
    MEASURED,
    METHODS,
    SETTINGS,
    TRIMMING,
    Setting,
    answering,
    crossed,
    equal_rows,
    first_place,
    mixed_batch,
    mixed_rows,
    stage_before,
    stages_of,
    text_ids,
    visual_slots,
    watching,
)
from tests.support import LAYERS, batch_of, make_row

SWIFT = swiftvlm.SwiftVLM(layers=(2, 4, 6))
BY_BUDGET: dict[str, Method] = {
    "random": RandomTokens(),
    "uniform": UniformTokens(after=1),
    "fastv": FastV(),
    "pdrop": PDrop(after=(2, 3, 5)),
    "feather": Feather(after=(2, 4)),
    "dart": Dart(),
    "topv": TopV(),
    "greedyprune": GreedyPrune(),
    "ivcprune": IVCPrune(after=1),
    "sparsevlm": SparseVLM(after=(2, 4)),
    "sparsevlm+": SparseVLMPlus(after=(2, 4)),
    "swiftvlm": SWIFT,
    "merge": replace(SWIFT, rest="merge"),
    "drop": replace(SWIFT, rest="drop"),
    "renumbered": replace(SWIFT, positions="renumbered"),
}


def check_counts(setting: Setting, method: Method, batch: dict[str, Tensor], budget: Any = None) -> swiftvlm.Trace:
    """Plan, trace, hidden states, mask columns, keys, values, logits and bytes all say the same."""
    model, stages = setting.model, stages_of(method, setting.model)
    whole = model(**batch)
    with swiftvlm.prune(model, method, budget=budget) as trace, watching(model) as looks:
        out = model(**batch)
    visual = [len(visual_slots(batch, row)) for row in range(len(whole.logits))]
    text = [real - seen for real, seen in zip(batch["attention_mask"].sum(1).tolist(), visual, strict=True)]
    shape = ModelShape.of(model)
    plans = [swiftvlm.plan(method, budget, shape, seen, other) for seen, other in zip(visual, text, strict=True)]
    assert trace.per_row == tuple(plan.tokens_per_layer for plan in plans)
    assert (trace.visual, trace.text) == (tuple(visual), tuple(text))
    for layer, (look, cached) in enumerate(zip(looks, out.past_key_values.layers, strict=True)):
        tokens = [plan.tokens_per_layer[layer] + other for plan, other in zip(plans, text, strict=True)]
        cut = bool(trace.kept) and stage_before(stages, layer) >= 0
        length = max(tokens) if cut else batch["input_ids"].shape[1]
        assert look.hidden.shape[1] == length
        trimmed = bool(trace.kept) and any(stage.trims for stage in stages)
        length_cached = looks[-1].hidden.shape[1] if trimmed else length
        assert (cached.keys.shape[-2], cached.values.shape[-2]) == (length_cached,) * 2
        for row, real in enumerate(tokens):
            assert look.keys_seen(row, first_place(batch, row, real, length) + real - 1) == real
    assert len(looks) == LAYERS
    assert out.logits.shape[1] == out.past_key_values.layers[-1].keys.shape[-2]
    assert trace.kv_bytes == held(out.past_key_values)
    assert trace.vanilla_kv_bytes == held(whole.past_key_values)
    for number, stage in enumerate(stages if trace.kept else ()):
        check_stage(trace, number, stage)
    return trace


def held(cache: Any) -> int:
    """Bytes of a cache's tensors."""
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


def check_stage(trace: swiftvlm.Trace, number: int, stage: Stage) -> None:
    """A layer's count is its stage's kept and merged tokens; each group has its anchor, and no group a kept token."""
    for row, counts in enumerate(trace.per_row):
        kept, anchors = trace.kept[number][row].tolist(), trace.anchors[number][row].tolist()
        assert len(kept) + len(anchors) == counts[stage.after]
        of = dict(zip(trace.candidates[number][row].tolist(), trace.groups[number][row].tolist(), strict=True))
        assert [of[slot] for slot in kept] == [-1] * len(kept)
        assert [of[slot] for slot in anchors] == list(range(len(anchors)))
        assert set(of.values()) - {-1} == set(range(len(anchors)))


@crossed(CACHED, SETTINGS)
def test_planned_is_cached_is_counted(method, setting):
    """By counts, in padded batches of one, two and no image, and with padding that all rows share."""
    check_counts(setting, method, mixed_batch(setting, seed=30, extra=2 if setting.kv_heads == 2 else 0))


@crossed(BY_BUDGET, [SETTINGS[1], SETTINGS[7]])
@pytest.mark.parametrize("budget", ["few", "smallest row", 0.6])
def test_a_budget_is_never_exceeded(method, setting, budget):
    """By budget: tokens for whole rows, or a fraction of each; the average over layers stays within it."""
    batch = mixed_batch(setting, seed=40)
    sizes = sorted(len(visual_slots(batch, row)) for row in range(4))
    budget = {"few": sizes[-1] * 3 // 8, "smallest row": sizes[1]}.get(budget, budget)
    trace = check_counts(setting, method, batch, budget)
    for visual, counts in zip(trace.visual, trace.per_row, strict=True):
        allowed = budget * visual if isinstance(budget, float) else budget
        assert sum(counts) / LAYERS <= allowed + 1e-9
        if isinstance(budget, int) and visual <= budget:
            assert counts == (visual,) * LAYERS


@crossed(CACHED, [SETTINGS[0], SETTINGS[4]])
def test_rows_of_one_length_and_unequal_counts(method, setting):
    """No padding before the cut, fillers behind it."""
    check_counts(setting, method, batch_of(setting.model, equal_rows(setting.model)))


@crossed(CACHED, LEFT)
def test_answers_grow_every_layer_alike(method, setting):
    """Each decoded token adds one entry to every layer's cache, and its layers see exactly what is cached."""
    model, batch = setting.model, batch_of(setting.model, mixed_rows(setting.model)[1:2])
    with swiftvlm.prune(model, method) as trace, watching(model) as looks:
        out, _ = answering(model, batch, text_ids(1, 3))
    sizes = [layer.keys.shape[-2] for layer in out.past_key_values.layers]
    assert sizes == [trace.text[0] + seen + 3 for seen in trace.tokens_per_layer]
    steps = [looks[start : start + LAYERS] for start in range(LAYERS, len(looks), LAYERS)]
    assert len(steps) == 3
    for step, layers in enumerate(steps):
        for look, size in zip(layers, sizes, strict=True):
            cached = size - 2 + step
            assert look.mask is None or (look.mask.shape[-1], look.keys_seen(0, 0)) == (cached, cached)


@crossed({name: METHODS[name] for name in TRIMMING}, LEFT)
def test_a_longer_row_of_text_trims_no_less(method, setting):
    """Beside a prompt that stays as long as the batch was, a row decodes as it does alone."""
    model, answer = setting.model, text_ids(2, 3)
    rows = [make_row(model, 36), make_row(model, 37, images=0, text=99)]
    with swiftvlm.prune(model, method):
        _, together = answering(model, batch_of(model, rows), answer, positions=True)
    with swiftvlm.prune(model, method):
        _, alone = answering(model, batch_of(model, rows[:1]), answer[:1], positions=True)
    torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=0)


@crossed({name: METHODS[name] for name in TRIMMING}, SETTINGS)
def test_a_trimmed_cache_is_as_short_in_every_layer(method, setting):
    """Layers before the cut saw everything, and cache what it left; answers grow all of them alike."""
    model, batch = setting.model, mixed_batch(setting, seed=35)
    with swiftvlm.prune(model, method) as trace, watching(model) as looks:
        out, _ = answering(model, batch, text_ids(4, 2))
    (stage,) = stages_of(method, model)
    assert [look.hidden.shape[1] for look in looks[: stage.after]] == [batch["input_ids"].shape[1]] * stage.after
    left = looks[stage.after].hidden.shape[1]
    assert left < batch["input_ids"].shape[1]
    assert [layer.keys.shape[-2] for layer in out.past_key_values.layers] == [left + 2] * LAYERS
    held = sum(
        layer.keys[:, :, :left].nbytes + layer.values[:, :, :left].nbytes for layer in out.past_key_values.layers
    )
    assert trace.kv_bytes == held
    assert trace.vanilla_kv_bytes == held // left * batch["input_ids"].shape[1]
    real = [trace.text[row] + counts[-1] for row, counts in enumerate(trace.per_row)]
    for look in looks[LAYERS : 2 * LAYERS]:
        assert [look.keys_seen(row, 0) for row in range(4)] == [count + 1 for count in real]


@crossed(MEASURED, SETTINGS)
def test_a_plan_is_a_bound_where_the_image_decides(method, setting):
    """Law 3 for measured counts: no layer holds more than planned, and the cache is what the trace says."""
    batch = mixed_batch(setting, seed=60)
    with swiftvlm.prune(setting.model, method) as trace:
        out = setting.model(**batch)
    shape = ModelShape.of(setting.model)
    bounds = [swiftvlm.plan(method, None, shape, seen).tokens_per_layer for seen in trace.visual]
    for row, bound in zip(trace.per_row, bounds, strict=True):
        assert all(held <= most for held, most in zip(row, bound, strict=True))
    text = [int(real) - seen for real, seen in zip(batch["attention_mask"].sum(1), trace.visual, strict=True)]
    for layer, cached in enumerate(out.past_key_values.layers):
        longest = max(row[layer] + other for row, other in zip(trace.per_row, text, strict=True))
        assert cached.keys.shape[-2] == longest
    # Without counts nothing bounds them: what the rank asks for is more than the plan had allowed.
    with swiftvlm.prune(setting.model, replace(method, counts=None, scale=9.0)) as unbound:
        setting.model(**batch)
    assert max(len(row) for row in unbound.kept[0]) > method.counts[0]
