"""Law 9: where there is nothing to prune, nothing changes, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from tests.laws.generation import FAMILIES, METHODS, mixed_rows
from tests.support import IMAGE, batch_of, make_row, tiny

SWIFT = swiftvlm.SwiftVLM(layers=(3, 5, 6))
BY_BUDGET = {
    "fastv": "fastv",
    "random": "random",
    "uniform": "uniform",
    "swiftvlm": SWIFT,
    "merge": swiftvlm.SwiftVLM(layers=(3, 5, 6), rest="merge"),
    "renumbered": swiftvlm.SwiftVLM(layers=(3, 5, 6), positions="renumbered"),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A tiny model a family."""
    return tiny(request.param)


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Prefill logits; tokens and logits of a greedy answer."""
    out = model.generate(**batch, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return model(**batch).logits, out.sequences, torch.stack(out.logits)


def assert_untouched(model: nn.Module, batch: dict[str, Tensor], method: Any, budget: Any = None) -> swiftvlm.Trace:
    """Pruned outputs equal vanilla ones exactly, and the trace says that no layer lost a token."""
    plain = outputs(model, batch)
    with swiftvlm.prune(model, method, budget=budget) as trace:
        pruned = outputs(model, batch)
    assert all(torch.equal(a, b) for a, b in zip(plain, pruned, strict=True))
    assert len(trace) == 2
    for run in trace:
        assert run.per_row == tuple((seen,) * 7 for seen in run.visual)
        assert (run.kept, run.anchors) == ((), ())
        assert run.kv_bytes == run.vanilla_kv_bytes
    return trace


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("rows", "side"), [(1, "left"), (3, "left"), (3, "right")])
def test_text_only_prompts_are_vanilla(model, method, rows, side):
    """No image, nothing to cut: also in a padded batch, also with counts fixed by hand."""
    batch = batch_of(model, [make_row(model, seed, images=0, text=4 + 3 * seed) for seed in range(rows)], side=side)
    trace = assert_untouched(model, batch, method)
    assert trace.visual == (0,) * rows


@pytest.mark.parametrize("method", BY_BUDGET.values(), ids=BY_BUDGET)
def test_rows_within_an_int_budget_are_vanilla(model, method):
    """The largest row has exactly the budget, the others less."""
    batch = batch_of(model, mixed_rows(model))
    most = int((batch["input_ids"] == IMAGE).sum(1).max())
    assert_untouched(model, batch, method, budget=most)


@pytest.mark.parametrize("method", BY_BUDGET.values(), ids=BY_BUDGET)
def test_only_rows_above_the_budget_are_cut(model, method):
    """A batch in which one row exceeds the budget: every other row keeps all it has, at every stage."""
    rows = mixed_rows(model)
    batch = batch_of(model, rows)
    visual = [row.ids.count(IMAGE) for row in rows]
    budget = sorted(visual)[-2]
    with swiftvlm.prune(model, method, budget=budget) as trace:
        logits = model(**batch).logits
    above = visual.index(max(visual))
    assert trace.average_tokens <= budget if above == 0 else trace.per_row[0] == (visual[0],) * 7
    for index, row in enumerate(rows):
        offset = batch["input_ids"].shape[1] - len(row.ids)
        every = [slot + offset for slot, token in enumerate(row.ids) if token == IMAGE]
        kept = [stage[index].tolist() for stage in trace.kept]
        assert len(kept) == (3 if isinstance(method, swiftvlm.SwiftVLM) else 1)
        if index == above:
            assert sum(trace.per_row[index]) / 7 <= budget < visual[index]
            assert all(len(slots) < visual[index] for slots in kept)
        else:
            assert kept == [every] * len(kept)
            assert [stage[index].tolist() for stage in trace.anchors] == [[]] * len(kept)
            plain = model(**batch_of(model, [row])).logits[0, -1]
            torch.testing.assert_close(logits[index, -1], plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["vanilla", "fastv"])
def test_a_budget_of_everything_changes_no_token_count(model, method):
    """1.0 is every token: the stages run, keep all, and the logits are vanilla's."""
    batch = batch_of(model, mixed_rows(model))
    plain = model(**batch).logits
    with swiftvlm.prune(model, method, budget=1.0) as trace:
        assert torch.equal(model(**batch).logits, plain)
    assert trace.per_row == tuple((seen,) * 7 for seen in trace.visual)


def test_the_language_model_on_its_own_is_none_of_our_business(model):
    """Somebody calls the decoder directly inside the `with`: no run, no change."""
    decoder, embeds = model.model.language_model, torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    plain = decoder(inputs_embeds=embeds).last_hidden_state
    with swiftvlm.prune(model, METHODS["swiftvlm"]) as trace:
        assert torch.equal(decoder(inputs_embeds=embeds).last_hidden_state, plain)
        ids = torch.tensor([[5, 6, 7]])
        decoder(input_ids=ids)
    assert len(trace) == 0
