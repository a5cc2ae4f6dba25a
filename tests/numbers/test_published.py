"""Published figures, to the printed digit: FLOPs columns of SwiftVLM's Table 1, token tables, presets."""

from dataclasses import replace

import pytest

from swiftvlm import ModelShape, Plan, SwiftVLM, plan
from swiftvlm.flops import (
    exact_layer,
    exact_stage,
    exact_total,
    paper_base,
    paper_layer,
    paper_reevaluation,
    paper_total,
)
from swiftvlm.methods import PDrop, PruMerge, PruMergePlus, SparseVLM
from swiftvlm.plans import Cut

SHAPE = ModelShape()
TEXT = 69.5  # the number of text tokens at which all seven published vanilla and baseline figures come out


def tera(value: float) -> str:
    """As Table 1 prints it."""
    return f"{value / 1e12:.2f}"


@pytest.mark.parametrize(
    ("method", "budget", "preset", "printed"),
    [
        ("vanilla", None, None, "4.29"),
        ("fastv", 192, None, "1.71"),
        ("fastv", 128, None, "1.29"),
        ("pdrop", None, "192", "1.72"),
        ("swiftvlm", 192, None, "1.75"),
        ("swiftvlm", None, "flops-matched-192", "1.75"),
        ("swiftvlm", None, "flops-matched-128", "1.31"),
    ],
)
def test_flops_column(method, budget, preset, printed):
    """The library's own plans reproduce the column."""
    assert tera(paper_total(SHAPE, plan(method, budget, SHAPE, 576, TEXT, preset))) == printed


def test_geo_128_is_stated_not_forced():
    """At exactly 128 tokens the formula gives 1.33; the paper's 1.31 needs an average of about 125 (LOG.md)."""
    made = plan("swiftvlm", 128, SHAPE, 576, TEXT)
    assert tera(paper_total(SHAPE, made)) == "1.33"
    assert made.average_tokens == pytest.approx(127.91, abs=0.01)
    assert plan("swiftvlm", None, SHAPE, 576, TEXT, "flops-matched-128").average_tokens == pytest.approx(
        125.2, abs=0.05
    )


@pytest.mark.parametrize(("tokens", "printed"), [(192, "1.71"), (128, "1.29")])
def test_visionzip_feeds_the_same_number_to_every_layer(tokens, printed):
    """VisionZip's rows: 32 layers at the budget."""
    assert tera(paper_base(SHAPE, [tokens] * 32, TEXT)) == printed


@pytest.mark.parametrize(
    ("counts", "printed", "average"), [((309, 204, 113), "1.72", 192.03), ((312, 117, 39), "1.30", 128.6)]
)
def test_sparsevlm_counts_at_layer_output(counts, printed, average):
    """SparseVLM's rows need its own, output-counted lists: the pruning layer counts as already pruned."""
    first, second, third = counts
    listed = [576] * 2 + [first] * 4 + [second] * 9 + [third] * 17
    assert tera(paper_base(SHAPE, listed, TEXT)) == printed
    assert sum(listed) / 32 == pytest.approx(average, abs=0.05)
    honest = Plan(32, 576, TEXT, (Cut(3, first), Cut(7, second), Cut(16, third)))
    assert honest.average_at_output == pytest.approx(sum(listed) / 32)
    assert honest.average_tokens > honest.average_at_output + 14


def test_fastv_counts():
    """Issue 2 and SparseVLMs' thread 12: 166, 98 and 29 tokens kept after layer 2."""
    kept = [plan("fastv", budget, SHAPE, 576).cuts[0].kept for budget in (192, 128, 64)]
    assert kept == [166, 98, 29]


@pytest.mark.parametrize(("budget", "counts"), [(192, (246, 62, 132, 33, 88)), (128, (172, 43, 64, 16, 30))])
def test_the_solver_finds_the_geo_presets(budget, counts):
    """The default presets are what the geometric schedule gives, not a table of their own."""
    solved, preset = plan("swiftvlm", budget, SHAPE, 576), plan("swiftvlm", None, SHAPE, 576, preset=f"geo-{budget}")
    flat = [count for cut in solved.cuts for count in (cut.kept, cut.merged)][:-1]
    assert tuple(flat) == counts
    assert solved == preset


def test_swiftvlm_layers_of_the_paper():
    """3 + 7 + 4 + 18 layers (methods: sec. 3.2 and 3.3)."""
    made = plan("swiftvlm", 192, SHAPE, 576)
    assert made.tokens_per_layer == (576,) * 3 + (308,) * 7 + (165,) * 4 + (88,) * 18


def test_one_reevaluation_by_hand():
    """Eq. 19 with d = 2, R = 3, Z = 1, n_v = 4, r = 1/4: 12 + 6 + 16 + 8 + 24."""
    shape = ModelShape(layers=1, hidden=2, intermediate=3, heads=1, kv_heads=1)
    assert paper_reevaluation(shape, 4, 3, 1, 0.25) == 12 + 6 + 16 + 8 + 24


def test_one_layer_by_hand():
    """Eq. 17 and the exact count with n = 2, d = 4, m = 3 and half the key heads; a stage with n = 5 and Z = 2."""
    shape = ModelShape(layers=1, hidden=4, intermediate=3, heads=2, kv_heads=1)
    assert paper_layer(shape, 2) == 4 * 2 * 16 + 2 * 4 * 4 + 3 * 2 * 4 * 3
    projections, attention, mlp = 2 * 4 * (4 + 2 + 2 + 4), (1 + 2) * 4 * 2, 3 * 2 * 4 * 3
    assert exact_layer(shape, 2) == 2 * (projections + attention + mlp)
    keys, query, scores, products = 5 * 4 * 2, 4 * 4, 5 * 4, 3 * 5 * 2 * 4
    assert exact_stage(shape, 5, 2, scored=True) == 2 * (keys + query + scores + products)
    assert exact_stage(shape, 5, 2, scored=False) == 2 * products


def test_exact_counts_what_the_paper_leaves_out():
    """Twice the multiply-accumulates, half the attention square, plus the head: vanilla is 8.47 T, not 4.29."""
    vanilla = exact_total(SHAPE, plan("vanilla", None, SHAPE, 576, TEXT))
    assert tera(vanilla) == "8.47"
    assert exact_total(SHAPE, plan("swiftvlm", 192, SHAPE, 576, TEXT)) < 0.42 * vanilla


def test_average_of_two_fates():
    """Table 3's rows cost the same tokens: merging and bypass are counted inside the budget."""
    fates = [SwiftVLM(rest=fate) for fate in ("drop", "merge", "bypass")]
    averages = [plan(method, 192, SHAPE, 576).average_tokens for method in fates]
    assert max(averages) - min(averages) < 0.01
    assert max(averages) <= 192


def test_the_authors_example_of_pyramiddrop_for_64():
    """Issue 29 of their repository: a ratio of .19 behind 2, 8 and 16 of 32 layers."""
    made = plan(PDrop(after=(2, 8, 16), counts=(109, 20, 3)), None, SHAPE, 576)
    assert made.average_tokens == (2 * 576 + 6 * 109 + 8 * 20 + 16 * 3) / 32 == 62.9375


@pytest.mark.parametrize("method", [SparseVLM(version="first"), PruMerge(adaptive=True), PruMergePlus(adaptive=True)])
def test_what_adapts_to_the_image_needs_no_count(method):
    """As in their official code: the plan's bound is everything, also on other depths and images."""
    for shape, visual in ((SHAPE, 576), (replace(SHAPE, layers=24), 1000)):
        assert set(plan(method, None, shape, visual).tokens_per_layer) == {visual}
