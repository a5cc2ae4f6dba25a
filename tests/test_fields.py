"""Fields of methods: what is not of a field's kind is refused where it is given, for every field of every method."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pytest

import swiftvlm
from swiftvlm import ModelShape, SwiftVLM
from swiftvlm.errors import BudgetError, MethodError
from swiftvlm.methods import METHODS
from swiftvlm.methods.base import Method
from swiftvlm.methods.fields import kinds_of
from swiftvlm.methods.pdrop import PDrop
from swiftvlm.methods.sparsevlm import SparseVLM
from swiftvlm.methods.vitcop import ViTCoP

EVERY = [(name, field) for name, method in METHODS.items() for field in kinds_of(method)]


@pytest.mark.parametrize(("name", "field"), EVERY, ids=lambda part: part)
@pytest.mark.parametrize("wrong", [object(), "no such word", {3}, (3, "b")], ids=["object", "word", "set", "mixed"])
def test_nothing_but_its_kind(name, field, wrong):
    """No field of any method takes these; the error names the field and what came."""
    with pytest.raises(MethodError, match=rf"^{field} is .*, got {re.escape(repr(wrong))}$"):
        METHODS[name](**{field: wrong})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 3}, r"layers is a tuple of ints or None, got 3"),
        ({"layers": (3, 5.5)}, r"layers is a tuple of ints or None, got \(3, 5.5\)"),
        ({"rope": 1}, r"rope is True or False, got 1"),
        ({"refine": True}, r"refine is an int, got True"),
        ({"taper": "steep"}, r"taper is a finite number, got 'steep'"),
        ({"anchors": "stride"}, r"anchors is one of \('strided', 'top', 'grid'\), got 'stride'"),
        ({"merged_position": "centre"}, r"merged_position is one of \('anchor', 'mean'\), got 'centre'"),
        ({"positions": "renumber"}, r"positions is one of \('original', 'renumbered'\), got 'renumber'"),
        ({"softmax_over": "image"}, r"softmax_over is one of \('all', 'visual'\), got 'image'"),
        ({"rest": "park"}, r"rest is one of \('bypass', 'merge', 'drop'\) or a tuple of such, got 'park'"),
        ({"rest": ("park", "drop")}, r"rest is one of .* got \('park', 'drop'\)"),
    ],
    ids=str,
)
def test_what_is_said(fields, message):
    """A misspelt choice would silently be another method, an int for a tuple would fail far away."""
    with pytest.raises(MethodError, match=message):
        SwiftVLM(**fields)


def test_numbers_of_numpy_are_plain_ones():
    """As from a grid of settings; not NaN or infinity, which no field takes."""
    numbers: Any = (np.int64(3), np.int32(5))
    method = SwiftVLM(layers=numbers, taper=cast(Any, np.float32(0.5)), refine=cast(Any, np.int64(2)))
    assert method == SwiftVLM(layers=(3, 5), taper=0.5, refine=2)
    assert [type(value) for value in (*(method.layers or ()), method.taper, method.refine)] == [int, int, float, int]
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(MethodError, match=rf"scale is a finite number, got {wrong}"):
            SparseVLM(version="first", scale=wrong)


def test_a_list_is_the_tuple_it_stands_for():
    """As in a notebook; the method can still be hashed."""
    given: Any = [3, 5, 6]
    assert SwiftVLM(layers=given) == SwiftVLM(layers=(3, 5, 6))
    assert hash(SwiftVLM(layers=given)) == hash(SwiftVLM(layers=(3, 5, 6)))


def test_a_version_has_presets_of_its_own():
    """SparseVLM's v2 by either name; its last count differs from v1.5's."""
    cuts = swiftvlm.plan(SparseVLM(version="plus"), None, ModelShape(), 576, preset="192").cuts
    assert [cut.kept for cut in cuts] == [300, 200, 118]
    assert cuts == swiftvlm.plan("sparsevlm+", None, ModelShape(), 576, preset="192").cuts


def test_no_layers_is_not_the_default():
    """An empty tuple asks for nothing, which is not what None asks for."""
    with pytest.raises(MethodError, match=r"after must name at least one layer, got \(\)"):
        PDrop(after=())


def test_kinds_of_a_users_own():
    """Plain kinds are judged, others are the user's; a fixed tuple is not one of any length."""

    @dataclass(frozen=True)
    class Mine(Method):
        name: ClassVar[str] = "mine"
        grid: tuple[int, str] = (3, "rows")
        table: dict[str, int] | None = None
        share: float = 0.5

        def stages(self, shape):
            return ()

    assert Mine(grid=(4, "columns"), table={"a": 1}, share=1).grid == (4, "columns")
    with pytest.raises(MethodError, match=r"share is a finite number, got None"):
        Mine(**{"share": None})


# Methods with layers of their own, at depths far from the published ones.
ONE, THREE, INSIDE = [1, 5, 12], [(1, 2, 3), (3, 8, 11), (10, 12, 20)], [(1,), (8,), (20,)]
DEPTHS: dict[str, list[Any]] = {
    **dict.fromkeys(("fastv", "dart", "topv", "greedyprune"), ONE),
    **dict.fromkeys(("pdrop", "sparsevlm", "sparsevlm+"), THREE),
    **dict.fromkeys(("vscan", "nuwa", "star"), INSIDE),
    "feather": [(1, 2), (4, 20), (10, 12)],
    "vitcop": [(1, 4), (2, 8), (2, 16), (4, 20), (8, 16)],
}


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize("budget", [64, 96, 128, 192, 288, 500])
def test_a_budget_is_used_or_refused_at_any_layers(name, budget):
    """A plan that stays far below its budget would compare a method at another one, and not say so."""
    for after in DEPTHS[name]:
        with suppress(BudgetError):
            plan = METHODS[name](after=after).plan(ModelShape(layers=24), 576, 70, budget)
            assert budget - 3 < plan.average_tokens <= budget, (after, plan.cuts)


PRESETS = [(name, preset) for name, method in METHODS.items() for preset in method.presets if name != "cdpruner"]


@pytest.mark.filterwarnings("ignore:no measured pruning layers")
@pytest.mark.parametrize(("name", "preset"), PRESETS, ids=lambda part: part)
def test_a_preset_at_another_depth_is_a_budget(name, preset):
    """Its average in the method's own structure, at layers that its table does not know."""
    method, shape = METHODS[name](), ModelShape(layers=24)
    table = method.settings()[preset]
    by_name = method.plan(shape, 576, 70, None, preset)
    assert by_name.cuts == method.plan(shape, 576, 70, table.fraction()).cuts
    assert table.fraction() * 576 - 3 < by_name.average_tokens <= table.fraction() * 576 + 1e-6


@pytest.mark.parametrize(
    ("after", "budget", "counts"),
    [
        ((2, 16), 192, (288, 258, 52)),  # a published setting's line: .2 + .9 / 3 of 576 in front, a fifth at the end
        ((2, 8), 192, (288, 288, 144)),  # the line would leave 134.7 on average: more stay at the end
        ((2, 8), 560, (576, 576, 552)),
        ((2, 16), 1.0, (576, 576, 576)),
    ],
)
def test_vitcop_uses_its_budget(after, budget, counts):
    """Cuts early inside leave less than the budget as long as a fifth is left behind them."""
    cuts = swiftvlm.plan(ViTCoP(after=after), budget, ModelShape(layers=24), 576).cuts
    assert tuple(cut.total for cut in cuts) == counts
