"""Scores on views made by hand."""

from dataclasses import dataclass, field, replace
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
from swiftvlm.tokens import keep_top
from tests.laws.before import METHODS as BEFORE
from tests.laws.cases import PRUNING
from tests.laws.replay import Scored
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


@dataclass(frozen=True)
class Compared:
    """Coordinates around a score, which notes what it keeps, what it should, and how many of these are coordinates."""

    score: Any
    notes: list[Any] = field(default_factory=list)

    @property
    def probe(self) -> Any:
        """That of the score."""
        return self.score.probe

    def rate(self, view: View) -> torch.Tensor:
        """Worked out here, not later: a view is good for as long as its stage."""
        keep, share = torch.tensor(view.keep), 2.5 / int(view.candidates.sum(1).max())  # one or two tokens
        rated = Coordinates(self.score, share).rate(view)
        taken = (Coordinates(Flat(), share).rate(view) > 1) & view.candidates
        left = keep - taken.sum(1)
        bare = replace(view, candidates=view.candidates & ~taken, keep=tuple(left.tolist()))
        wanted = taken | keep_top(self.score.rate(bare), bare.candidates, left)
        self.notes.append((keep_top(rated, view.candidates, keep), wanted, taken.sum(1), left))
        return rated


CHOOSING = ("uniform", "dart", "topv", "greedyprune", "sparsevlm+", "drop", "vscan", "nuwa", "star", "fastv")


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("name", CHOOSING)
def test_behind_coordinates_come_the_best_of_the_rest(family, name):
    """What a method adds is what it would choose if there were no coordinate tokens, and so many places fewer."""
    model, method = tiny(family), {**PRUNING, **BEFORE}[name]
    batch = batch_of(model, [make_row(model, 40 + seed, images=1 + seed) for seed in range(2)], extra=2)
    compared = Compared(method.stages(swiftvlm.ModelShape.of(model))[0].score)
    with swiftvlm.prune(model, Scored(method, compared)), torch.no_grad():
        model(**batch)
    kept, wanted, taken, left = compared.notes[0]
    assert (taken > 0).all()
    assert (left > 0).all()
    assert torch.equal(kept, wanted)


def test_coordinates_come_first_beside_scores_of_any_size():
    """Scores may be far beyond attention's 1, and of either sign."""

    class Steep(Flat):
        def rate(self, view: Any) -> torch.Tensor:
            return torch.linspace(-5000.0, 5000.0, view.slot.shape[1]).expand(view.slot.shape)

    model, found = tiny(), []
    for score in (Steep(), Flat()):
        with swiftvlm.prune(model, Scored(FastV(after=2, counts=(4,)), Coordinates(score, 0.25))) as trace:
            model(**batch_of(model, [make_row(model, 3)]))
        found.append(trace.kept[0][0].tolist())
    assert found[0] == found[1]
    assert found[0] != [16, 17, 18, 19]


def test_coordinates_need_a_stage_inside_the_model():
    """Before the language model no token has a position; shares of nothing and of everything are refused."""
    with pytest.raises(MethodError, match="divprune has no stage inside the language model"):
        swiftvlm.prune(tiny(), Coordinated(find_method("divprune")), budget=8)
    with pytest.raises(MethodError, match=r"share is a share of the visual tokens in \(0, 1\), got 1.0"):
        Coordinated(FastV(), 1.0)
    with pytest.raises(MethodError, match=r"takes an instance of a method, such as FastV\(\), got 'fastv'"):
        Coordinated("fastv")  # type: ignore[arg-type]
    plan = swiftvlm.plan(Coordinated(FastV()), 192, swiftvlm.ModelShape(), 576)
    assert plan == swiftvlm.plan(FastV(), 192, swiftvlm.ModelShape(), 576)
