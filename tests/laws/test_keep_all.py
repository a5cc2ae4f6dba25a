"""Law 1: with counts that keep everything the stages still run, and every logit is vanilla's, bit for bit."""

from typing import Any

import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.methods.base import Method
from tests.laws.cases import (
    LEFT,
    METHODS,
    PRUNING,
    RIGHT,
    SETTINGS,
    answering,
    bare,
    crossed,
    equal_rows,
    keeping_all,
    mixed_batch,
    real_tokens,
    stages_of,
    text_ids,
    visual_slots,
)
from tests.support import LAYERS, batch_of

BY_BUDGET = {
    "fastv": "fastv",
    "random": "random",
    "swiftvlm": swiftvlm.SwiftVLM(layers=(2, 4, 6)),
    "merge": swiftvlm.SwiftVLM(layers=(2, 4, 6), rest="merge"),
}


def check_keep_all(model: nn.Module, method: Any, batch: dict[str, Tensor], masked: bool = True, **prune: Any) -> None:
    """Prefill and a four-token answer equal vanilla's; every stage ran, had every visual token and kept it."""
    given, answer = batch if masked else bare(batch), text_ids(len(batch["input_ids"]), 4)
    plain, plain_steps = answering(model, given, answer, (1, 1, 2))
    with swiftvlm.prune(model, method, **prune) as trace:
        pruned, steps = answering(model, given, answer, (1, 1, 2))
    assert torch.equal(pruned.logits, plain.logits)
    assert torch.equal(steps, plain_steps)
    every = [visual_slots(batch, row) for row in range(len(answer))]
    stages = len(stages_of(method, model)) if isinstance(method, Method) else 1
    assert [[row.tolist() for row in stage] for stage in trace.candidates] == [every] * stages
    assert [[row.tolist() for row in stage] for stage in trace.kept] == [every] * stages
    assert sum(len(row) for stage in trace.anchors for row in stage) == 0
    assert trace.per_row == tuple((len(slots),) * LAYERS for slots in every)


@crossed(METHODS, SETTINGS)
def test_keeping_everything_is_vanilla(method, setting):
    """By counts: padded batches of one, two and no image."""
    check_keep_all(setting.model, keeping_all(method), mixed_batch(setting))


@crossed(METHODS, LEFT)
def test_keeping_everything_without_a_mask_is_vanilla(method, setting):
    """No mask is given, the kernel knows only "causal": rows of one length with unequal visual counts."""
    batch = batch_of(setting.model, equal_rows(setting.model))
    check_keep_all(setting.model, keeping_all(method), batch, masked=False)


@crossed(BY_BUDGET, RIGHT)
def test_a_budget_of_everything_is_vanilla(method, setting):
    """By the budget 1.0."""
    check_keep_all(setting.model, method, mixed_batch(setting), budget=1.0)


@crossed(PRUNING, [SETTINGS[0], SETTINGS[5]])
def test_padding_that_all_rows_share_goes_and_changes_nothing_else(method, setting):
    """A processor padded to a fixed length: a cut removes common padding too, so equality is to rounding."""
    model, batch = setting.model, mixed_batch(setting, extra=3)
    plain = model(**batch).logits
    with swiftvlm.prune(model, keeping_all(method)):
        pruned = model(**batch).logits
    assert pruned.shape[1] == plain.shape[1] - 3
    for row, real in enumerate(batch["attention_mask"].sum(1).tolist()):
        expected = real_tokens(batch, row, plain, real)
        torch.testing.assert_close(real_tokens(batch, row, pruned, real), expected, atol=1e-5, rtol=0)


@crossed(PRUNING, [SETTINGS[0], SETTINGS[7]])
def test_keeping_less_is_not_vanilla(method, setting):
    """The checks above can see a cut: with the methods' own counts the logits are fewer, and others."""
    batch = mixed_batch(setting)
    plain = setting.model(**batch).logits
    with swiftvlm.prune(setting.model, method):
        pruned = setting.model(**batch).logits
    assert pruned.shape[1] < plain.shape[1]
    assert (pruned[0, -1] - plain[0, -1]).abs().max() > 1e-3
