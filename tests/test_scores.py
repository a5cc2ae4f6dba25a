"""Scores on views made by hand."""

from typing import Any

import pytest
import torch

import swiftvlm
from swiftvlm import SwiftVLM
from swiftvlm.errors import MethodError
from swiftvlm.methods import find_method
from swiftvlm.methods.coordinated import Coordinated
from swiftvlm.methods.fastv import FastV
from swiftvlm.scores import Coordinates, View
from tests.support import batch_of, make_row, tiny


class Flat:
    """Rates everything alike."""

    probe = None

    def rate(self, view: Any) -> torch.Tensor:
        """A half."""
        return torch.full(view.slot.shape, 0.5)


def test_coordinate_tokens_by_hand():
    """Six visual tokens behind one of text; of a third of them, one has the largest cosine and one the largest sine."""
    angle = torch.tensor([0.0, 1.0, 0.2, 3.0, 1.6, 0.1, 2.0])[None, :, None].expand(1, 7, 2)
    none: Any = None
    view = View(
        hidden=torch.zeros(1, 7, 4),
        slot=torch.arange(7)[None],
        present=torch.ones(1, 7, dtype=torch.bool),
        candidates=torch.tensor([[False] + [True] * 6]),
        query=torch.tensor([6]),
        keep=(2,),
        input_ids=torch.zeros(1, 7, dtype=torch.long),
        attention_logits=lambda queries, rope: none,
        keys=lambda: none,
        values=lambda: none,
        entered=lambda: none,
        labels=lambda: none,
        final=lambda: none,
        cells=lambda: none,
        start=lambda: none,
        turned=lambda: (angle.cos(), angle.sin()),
    )
    rated = Coordinates(Flat(), 1 / 3).rate(view)
    assert (rated > 1).nonzero()[:, 1].tolist() == [4, 5]  # sin(1.6), cos(0.1): the text at angle 0 does not count
    assert Coordinates(Flat(), 0.0).rate(view).max() == 0.5


def test_coordinates_are_kept_whatever_is_asked():
    """On a model: the same tokens under two questions of the same length, whatever padding stands before them."""
    model, found = tiny(), []
    for seed, extra in ((0, 0), (1, 0), (1, 5)):
        row = make_row(model, 3, text=6)
        row.ids[-6:] = [2 + (seed * 7 + i) % 40 for i in range(6)]
        method = swiftvlm.SwiftVLM(layers=(2, 4), counts=(8, 2, 8), coordinates=0.5)
        with swiftvlm.prune(model, method) as trace:
            model(**batch_of(model, [row], extra=extra))
        found.append(
            {int(slot) - extra for slot in trace.kept[0][0]} & {int(slot) - extra for slot in trace.kept[1][0]}
        )
    assert len(found[0] & found[1] & found[2]) >= 5


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_any_method_may_keep_coordinates(family):
    """Around SwiftVLM it is the field of that name; around FastV some of its tokens give way to coordinates."""
    model = tiny(family)
    batch = batch_of(model, [make_row(model, seed, images=2) for seed in range(2)])
    swift = {"layers": (2, 4, 6), "counts": (6, 3, 5, 2, 4)}
    methods = (SwiftVLM(**swift, coordinates=0.1), Coordinated(SwiftVLM(**swift), 0.1))
    fast = FastV(after=2, counts=(8,))
    kept = []
    for method in (*methods, fast, Coordinated(fast, 0.2)):
        with swiftvlm.prune(model, method) as trace, torch.no_grad():
            logits = model(**batch).logits
        kept.append(([[row.tolist() for row in stage] for stage in trace.kept], logits))
    assert kept[0][0] == kept[1][0]
    assert torch.equal(kept[0][1], kept[1][1])
    assert [len(row) for row in kept[2][0][0]] == [len(row) for row in kept[3][0][0]]
    assert kept[2][0] != kept[3][0]


def test_coordinates_need_a_stage_inside_the_model():
    """Before the language model no token has a position; shares of nothing and of everything are refused."""
    with pytest.raises(MethodError, match="divprune has no stage inside the language model"):
        swiftvlm.prune(tiny(), Coordinated(find_method("divprune")), budget=8)
    with pytest.raises(MethodError, match=r"share is a share of the visual tokens in \(0, 1\), got 1.0"):
        Coordinated(FastV(), 1.0)
    plan = swiftvlm.plan(Coordinated(FastV()), 192, swiftvlm.ModelShape(), 576)
    assert plan == swiftvlm.plan(FastV(), 192, swiftvlm.ModelShape(), 576)
