"""Law 10: the same inputs keep the same tokens, in every run and under every attention backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.scores import TextAttention, View
from swiftvlm.trace import Run, Trace
from tests.laws.generation import COUNTS, METHODS, mixed_rows
from tests.support import batch_of, tiny

TIE, CLOSE = 1e-6, 1e-5
EVERY = {
    **METHODS,
    "merge": swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=COUNTS, rest="merge", refine=2, merged_position="mean"),
    "visual": swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=COUNTS, softmax_over="visual", rope=False, anchors="top"),
    "random": swiftvlm.METHODS["random"](counts=(5,)),
    "uniform": swiftvlm.METHODS["uniform"](counts=(5,)),
}


@contextmanager
def gaps(found: list[list[float]]) -> Iterator[None]:
    """Collect, for every stage that scores by attention, each row's score gap at the cut."""
    rate = TextAttention.rate

    def listening(self: TextAttention, view: View) -> Tensor:
        scores = rate(self, view)
        found.append([_gap(scores[row][view.candidates[row]], keep) for row, keep in enumerate(view.keep)])
        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextAttention, "rate", listening)
        yield


def _gap(scores: Tensor, keep: int) -> float:
    ranked = scores.sort(descending=True).values
    return float(ranked[keep - 1] - ranked[keep]) if 0 < keep < len(ranked) else float("inf")


def run(model: nn.Module, method: Method, batch: dict[str, Tensor]) -> tuple[Trace, Tensor, Tensor]:
    """Trace, prefill logits and a greedy answer's logits."""
    with swiftvlm.prune(model, method) as trace:
        logits = model(**batch).logits
        out = model.generate(
            **batch, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return trace, logits, torch.stack(out.logits)


@pytest.mark.parametrize(("family", "attn"), [("llava", "sdpa"), ("llava_next", "eager")])
@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_repeated_runs_agree_to_the_last_bit(family, method, attn):
    """Twice in one process, whatever the global random state: same tokens, same logits."""
    model = tiny(family, attn=attn)
    batch = batch_of(model, mixed_rows(model))
    torch.manual_seed(1)
    trace, logits, steps = run(model, method, batch)
    torch.manual_seed(2)
    again, same_logits, same_steps = run(model, method, batch)
    assert trace == again
    assert [choices(trace.runs[0], row) for row in range(4)] == [choices(trace.runs[1], row) for row in range(4)]
    assert torch.equal(logits, same_logits)
    assert torch.equal(steps, same_steps)


@pytest.mark.parametrize("method", ["random", "uniform"])
def test_pruning_leaves_the_global_random_state_alone(method):
    """A method with a seed of its own does not move the user's."""
    model = tiny("llava")
    batch = batch_of(model, mixed_rows(model))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with swiftvlm.prune(model, method, budget=0.5):
        model(**batch)
    assert torch.equal(torch.rand(4), expected)


def test_another_seed_draws_other_tokens():
    """`random` obeys its seed."""
    model = tiny("llava")
    batch = batch_of(model, mixed_rows(model))
    kept = []
    for seed in (0, 1):
        with swiftvlm.prune(model, swiftvlm.METHODS["random"](counts=(5,), seed=seed)) as trace:
            model(**batch)
        kept.append([row.tolist() for row in trace.kept[0]])
    assert kept[0] != kept[1]


@pytest.mark.parametrize(("family", "kv_heads"), [("llava", 4), ("llava_next", 2)])
@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_sdpa_keeps_what_eager_keeps(family, kv_heads, method):
    """Kept, anchors and groups equal unless the scores tie within 1e-6 at a cut; then logits to 1e-5, steps too.

    A row that ties is skipped; no more than one may.
    """
    results, found = [], []
    for attn in ("sdpa", "eager"):
        model = tiny(family, kv_heads, attn)
        batch = batch_of(model, mixed_rows(model))
        with gaps(found):
            results.append(run(model, method, batch))
    (sdpa, logits, steps), (eager, other_logits, other_steps) = results
    clear = [row for row in range(4) if all(stage[row] >= TIE for stage in found)]
    assert len(clear) >= 3
    for row in clear:
        assert choices(sdpa, row) == choices(eager, row)
        real = sdpa.text[row] + sdpa.per_row[row][-1]  # padding on the left attends to nothing, as it likes
        torch.testing.assert_close(logits[row, -real:], other_logits[row, -real:], atol=CLOSE, rtol=0)
        torch.testing.assert_close(steps[:, row], other_steps[:, row], atol=CLOSE, rtol=0)


def choices(trace: Trace | Run, row: int) -> list[Any]:
    """All that the stages decided for one row."""
    return [[stage[row].tolist() for stage in part] for part in (trace.kept, trace.anchors, trace.groups)]
