"""What `Stage` has room for beyond today's methods, each shown by a small method of its own."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.scores import TextAttention
from swiftvlm.stage import Bypass, Drop, Merge, Stage
from tests.reference.slow_methods import embed_row, slow_swiftvlm
from tests.support import IMAGE, batch_of, features_of, make_row, tiny

NEXT, PREVIOUS = TextAttention("next"), TextAttention("previous")


@dataclass(frozen=True)
class AnyStages(Method):
    """Stages and counts as given."""

    name: ClassVar[str] = "any"
    given: tuple[Stage, ...] = ()
    counts: tuple[int, ...] | None = None

    def stages(self, shape):
        """As given."""
        return self.given


def inputs_of_layers(model, method, batch):
    """The states every layer receives, and the trace."""
    seen, hooks = {}, []
    with swiftvlm.prune(model, method) as trace:
        for i, layer in enumerate(model.model.language_model.layers):
            hooks.append(layer.register_forward_pre_hook(lambda m, a, i=i: seen.update({i: a[0]})))
        model(**batch)
    for hook in hooks:
        hook.remove()
    return seen, trace


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_merged_tokens_behind_the_kept_ones(family):
    """Contents: text, kept, merged, text; slots stay ascending; the same multiset of states as in anchors' slots."""
    model = tiny(family)
    row = make_row(model, 0)
    batch, counts = batch_of(model, [row]), (5, 3, 4)
    made = {}
    for place in ("anchor", "behind"):
        stages = (Stage(2, PREVIOUS, Merge(place=place)), Stage(4, NEXT))
        made[place] = inputs_of_layers(model, AnyStages(given=stages, counts=counts), batch)[0][2][0]
    first = row.ids.index(IMAGE)
    assert torch.equal(made["anchor"][:first], made["behind"][:first])
    assert torch.equal(made["anchor"][first + 8 :], made["behind"][first + 8 :])
    kept, merged = made["behind"][first : first + 5], made["behind"][first + 5 : first + 8]
    both = made["anchor"][first : first + 8]
    is_kept = (both[:, None] == kept[None]).all(-1).any(1)
    assert torch.equal(both[is_kept], kept)
    assert torch.equal(both[~is_kept], merged)


def test_bypass_behind_restores_every_token_to_its_own_slot():
    """With one-token groups each token comes back as the layer left it, from wherever it sat meanwhile."""
    model = tiny()
    row = make_row(model, 1)
    stages = (Stage(2, PREVIOUS, Bypass(place="behind")), Stage(3, NEXT, Drop()))
    method = AnyStages(given=stages, counts=(6, 10, 16))
    with swiftvlm.prune(model, method, record_states=(3,)) as trace:
        model(**batch_of(model, [row]))
    restored = inputs_of_layers(model, method, batch_of(model, [row]))[0][3][0]
    first = row.ids.index(IMAGE)
    slots = trace.kept[0][0].tolist() + trace.anchors[0][0].tolist()
    assert sorted(slots) == list(range(first, first + 16))
    assert slots != sorted(slots)
    torch.testing.assert_close(restored[slots], trace.states[3][0, first : first + 16], atol=1e-6, rtol=0)


def test_counts_measured_from_the_image():
    """A stage may keep fewer than planned, each row its own number; the plan, cache and trace follow."""
    model = tiny()
    rows = [make_row(model, seed, text=6) for seed in (2, 3, 4)]
    measure = MeasureAboveMean()
    stages = (Stage(3, PREVIOUS, measure=measure),)
    with swiftvlm.prune(model, AnyStages(given=stages, counts=(12,))) as trace:
        out = model(**batch_of(model, rows))
    kept = [len(row) for row in trace.kept[0]]
    assert kept == measure.last
    assert len(set(kept)) > 1
    assert [counts[3] for counts in trace.per_row] == kept
    assert out.past_key_values.layers[3].keys.shape[-2] == len(rows[0].ids) - 16 + max(kept)


class MeasureAboveMean:
    """As many tokens as score above the row's mean."""

    def __call__(self, view, scores):
        """One count a row, nothing merged."""
        self.last = [int((s[c] > s[c].mean()).sum()) for s, c in zip(scores, view.candidates, strict=True)]
        return [(count, 0) for count in self.last]


def test_text_raters_see_any_query_rows():
    """A score may ask for the rows of several text tokens; one of them alone is the last-token row."""
    model = tiny()
    row = make_row(model, 5)
    asked = {}

    @dataclass(frozen=True)
    class Raters:
        probe: str = "next"

        def rate(self, view):
            text = torch.tensor([[view.slot.shape[1] - 3, view.slot.shape[1] - 1]])
            asked["rows"] = view.attention_logits(text, True)
            asked["last"] = view.attention_logits(view.query[:, None], True)
            return asked["rows"].mean((1, 2))

    stages = (Stage(2, Raters()),)
    with swiftvlm.prune(model, AnyStages(given=stages, counts=(4,))) as trace:
        model(**batch_of(model, [row]))
    assert asked["rows"].shape == (1, 4, 2, len(row.ids))
    torch.testing.assert_close(asked["rows"][:, :, 1], asked["last"][:, :, 0])
    assert len(trace.kept[0][0]) == 4


def test_four_stages_of_every_fate():
    """As many stages as layers allow: bypass, merge, bypass, drop, against the slow reference where it can follow."""
    model = tiny()
    row = make_row(model, 6)
    method = swiftvlm.SwiftVLM(layers=(1, 3, 5, 7), counts=(8, 3, 7, 2, 6, 3, 4))
    with swiftvlm.prune(model, method) as trace:
        model(**batch_of(model, [row]))
    slow = slow_swiftvlm(
        model,
        embed_row(model, torch.tensor(row.ids), **features_of(model, row)),
        torch.tensor(row.ids) == IMAGE,
        len(row.ids),
        layers=(1, 3, 5, 7),
        counts=(8, 3, 7, 2, 6, 3, 4),
    )
    assert [stage[0].tolist() for stage in trace.kept] == slow.kept


def test_a_method_without_presets_needs_a_budget():
    """Never silently unpruned."""
    method = AnyStages(given=(Stage(2, PREVIOUS),))
    with pytest.raises(swiftvlm.SwiftVLMError, match="any has no presets: give it a budget, or counts"):
        swiftvlm.plan(method, None, swiftvlm.ModelShape(), 576)
