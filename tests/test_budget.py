"""Budgets: never exceeded, met as nearly as whole tokens allow, refused with what could be reached."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from swiftvlm import ModelShape, SwiftVLM, plan
from swiftvlm.errors import BudgetError
from swiftvlm.methods.fastv import FastV

SHAPE = ModelShape()
MANY = settings(max_examples=200, deadline=None, derandomize=True)


@given(
    visual=st.integers(1, 3000),
    budget=st.one_of(st.integers(1, 3000), st.floats(0.01, 1.0)),
    share=st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9]),
    rest=st.sampled_from(["bypass", "merge", "drop"]),
    layers=st.sampled_from([None, (2, 5), (4, 12, 20), (1, 3, 9, 30), (31,)]),
)
@MANY
def test_a_budget_is_never_exceeded_and_nearly_met(visual, budget, share, rest, layers):
    """Within the budget; short of it by less than one token a stage; every stage keeps at least one."""
    method = SwiftVLM(layers=layers, merged_share=share, rest=rest)
    allowed = budget if isinstance(budget, int) else budget * visual
    try:
        made = plan(method, budget, SHAPE, visual)
    except BudgetError as error:
        least = float(str(error).split("between ")[1].split(" ")[0])
        assert allowed < least
        return
    if isinstance(budget, int) and visual <= budget:
        assert made.cuts == ()
        return
    assert made.average_tokens <= allowed + 1e-6
    assert all(cut.kept >= 1 for cut in made.cuts)
    if made.cuts[-1].total > 3:  # minimum counts have not distorted the schedule
        assert made.average_tokens > allowed - len(made.cuts)


@given(visual=st.integers(20, 3000), low=st.integers(1, 3000), high=st.integers(1, 3000))
@MANY
def test_more_budget_never_means_fewer_tokens(visual, low, high):
    """Monotone in the budget."""
    low, high = sorted((low, high))
    try:
        fewer, more = plan("swiftvlm", low, SHAPE, visual), plan("swiftvlm", high, SHAPE, visual)
    except BudgetError:
        assume(False)
    assert fewer.average_tokens <= more.average_tokens + 1e-9


def test_everything_is_a_float_and_one_is_a_token():
    """1.0 keeps every token; 1 asks for a single one and says what is possible."""
    assert plan("swiftvlm", 1.0, SHAPE, 576).tokens_per_layer == (576,) * 32
    with pytest.raises(BudgetError, match=r"budget of 1 visual tokens .* between 55\.3 and 576\.0 of 576"):
        plan("swiftvlm", 1, SHAPE, 576)


def test_a_row_within_an_int_budget_is_untouched():
    """No cuts at all, not cuts that keep everything."""
    assert plan("fastv", 192, SHAPE, 192).cuts == ()
    assert plan("fastv", 192, SHAPE, 0).cuts == ()


def test_fixed_counts_clamp_to_what_there_is():
    """A short row keeps what it has; merged tokens only come from what is left."""
    made = plan(SwiftVLM(counts=(246, 62, 132, 33, 88)), None, SHAPE, 250)
    assert [(cut.kept, cut.merged) for cut in made.cuts] == [(246, 4), (132, 33), (88, 0)]


def test_a_drop_stage_cannot_give_back_what_is_gone():
    """Counts that grow are clamped behind a drop, and honoured behind a bypass."""
    dropped = plan(SwiftVLM(counts=(10, 0, 20, 0, 5), rest="drop"), None, SHAPE, 100)
    assert [cut.total for cut in dropped.cuts] == [10, 10, 5]
    bypassed = plan(SwiftVLM(counts=(10, 2, 20, 4, 5)), None, SHAPE, 100)
    assert [cut.total for cut in bypassed.cuts] == [12, 24, 5]


def test_presets_are_fractions_on_other_grids():
    """A preset on 1152 tokens keeps twice as many (ambiguity Q), and on another depth the same average share."""
    double = plan("swiftvlm", None, SHAPE, 1152, preset="192")
    assert [(cut.kept, cut.merged) for cut in double.cuts] == [(492, 124), (264, 66), (176, 0)]
    deeper = plan("fastv", None, ModelShape(layers=40), 576, preset="192")
    assert deeper.average_tokens == pytest.approx(191.6, abs=1)


def test_depth_scaling_says_so_once():
    """LLaVA-1.5-13B: 3, 11, 15 of 32 become 4, 14, 19 of 40, with a warning that names them."""
    with pytest.warns(UserWarning, match=r"uses \(4, 14, 19\), the paper's \(3, 11, 15\) of 32 scaled by depth"):
        stages = SwiftVLM().stages(ModelShape(layers=40))
    assert [stage.after for stage in stages] == [4, 13, 18]


def test_fastv_depth_is_a_field():
    """K = 3 at 192: 152 tokens (methods: 2.3)."""
    assert plan(FastV(after=3), 192, SHAPE, 576).cuts[0].kept == 152
