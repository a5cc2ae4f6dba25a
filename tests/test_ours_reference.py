"""What no paper has: SwiftVLM's anchors on the grid, coordinates and taper, by hand and against the slow reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from swiftvlm import ModelShape, SwiftVLM, tokens
from swiftvlm.families import find_family
from tests.reference.slow_methods import SlowResult, slow_swiftvlm
from tests.reference.slow_ours import coordinates_first, spread_slots, tapered_totals
from tests.test_against_reference import CASES, EXAMPLES, SITUATIONS, SWIFT, Case, check, everywhere, swift_fields

# Image, tile, row and column: a tile of 2 x 4, a newline, and another tile of one row.
CELLS = [(0, 0, row, column) for row in (0, 1) for column in (0, 1, 2, 3)]
CELLS += [(0, -1, -1, -1), (0, 1, 0, 0), (0, 1, 0, 1), (0, 1, 0, 2)]


@pytest.mark.parametrize(
    ("low", "count", "anchors"),
    [
        (range(8), 1, [0]),
        (range(8), 2, [0, 7]),  # the opposite corner
        (range(8), 3, [0, 2, 7]),  # 2 is 2 from 0 and sqrt(2) from 7; 5 as far from both; 3 and 4 are 1 from a corner
        ([1, 2, 4, 6], 2, [1, 4]),  # from (0, 1): 1, sqrt(2), sqrt(2): the tie goes to 4
        (range(12), 2, [0, 11]),  # the other tile first, and there (0, 2), whose cell differs most
        (range(12), 3, [0, 7, 11]),
        ([8, 9, 10], 1, [9]),  # a newline is not the first, though it leads
        ([8, 9, 10], 3, [8, 9, 10]),
    ],
)
def test_anchors_on_the_grid_by_hand(low: Any, count: int, anchors: list[int]) -> None:
    """The library's and the reference's, on twelve tokens."""
    marks = torch.tensor([[slot in low for slot in range(len(CELLS))]])
    found = tokens.covering(marks, torch.tensor([CELLS]), torch.tensor([count]))
    assert found[0].nonzero()[:, 0].tolist() == anchors
    assert spread_slots(list(low), dict(enumerate(CELLS)), count) == anchors


def test_coordinates_by_hand() -> None:
    """One frequency of 1 and six positions; of a third of them one has the largest cosine, and one the largest sine.

    Cosines of 1, 2, 4, 5, 6, 8: .54, -.42, -.65, .28, .96, -.15; sines .84, .91, -.76, -.96, -.28, .99. Of two
    thirds, sines add 2 (.91) and cosines 1 (.54).
    """
    scores = dict.fromkeys(range(6), 0.1)
    positions = dict(enumerate([1.0, 2.0, 4.0, 5.0, 6.0, 8.0]))
    for share, first in ((1 / 3, {4, 5}), (2 / 3, {0, 1, 4, 5}), (0.0, set())):
        raised = coordinates_first(scores, positions, torch.ones(1), share)
        assert {slot for slot, score in raised.items() if score > 1} == first


# Several tiles among which no distance is close: see FAR.
TILES = Case("llava_next", 4, "eager", ((15, 1, 5), (19, 1, 9)), "left")


def slow(fields: dict[str, Any]) -> Any:
    """The slow reference with these fields; cells are read off the model's own."""
    given = {name: value for name, value in fields.items() if name != "rest"}

    def run(model: Any, embeds: Tensor, visual: Tensor, length: int) -> SlowResult:
        slots = visual[:length].nonzero()[:, 0]
        found = find_family(model).cells(model, embeds[slots])
        assert found is not None
        places = {int(slot): tuple(cell) for slot, cell in zip(slots, found.tolist(), strict=True)}
        return slow_swiftvlm(model, embeds, visual, length, mode=fields["rest"], cells=places, **given)

    return run


def one_tile(case: Case) -> Case:
    """The same with LLaVA's single tile, and one image a row at most."""
    return replace(case, family="llava", rows=tuple((seed, min(images, 1), text) for seed, images, text in case.rows))


@given(case=CASES.map(one_tile), fields=swift_fields(), share=st.sampled_from([0.0, 0.25, 0.5]))
@example(case=SITUATIONS[0], fields=SWIFT, share=0.25)
@example(case=one_tile(SITUATIONS[1]), fields=SWIFT, share=0.0)
@example(case=SITUATIONS[2], fields=SWIFT, share=0.0)
@example(case=TILES, fields=SWIFT, share=0.0)
@settings(EXAMPLES, max_examples=10)
def test_grid_and_coordinates_equal_the_slow_reference(case: Case, fields: dict[str, Any], share: float) -> None:
    """Anchors over rows and columns, tokens kept for their positions, or both, under every other switch."""
    fields = {**fields, "anchors": "grid", "coordinates": share}
    check(case, SwiftVLM(**fields), slow(fields))


@pytest.mark.parametrize("case", SITUATIONS[1::2], ids=lambda case: f"{case.family}-{len(case.rows)}")
def test_the_grid_of_several_tiles_equals_the_slow_reference(case: Case) -> None:
    """Several tiles, or several images."""
    fields = {**SWIFT, "anchors": "grid"}
    check(case, SwiftVLM(**fields), slow(fields))


def test_the_farthest_cell_of_a_far_tile_by_hand() -> None:
    """From (0, 0) four tiles away: (1, 3) is farther than (0, 3)."""
    cells = torch.tensor([[(0, 0, 0, 0), (0, 4, 0, 3), (0, 4, 1, 3)]])
    found = tokens.covering(torch.ones(1, 3, dtype=torch.bool), cells, torch.tensor([2]))
    assert found[0].tolist() == [True, False, True]


@given(case=CASES, fields=swift_fields(), share=st.sampled_from([0.25, 0.5]))
@everywhere(fields=SWIFT, share=0.25)
@settings(EXAMPLES, max_examples=4)
def test_coordinates_alone_equal_the_slow_reference(case: Case, fields: dict[str, Any], share: float) -> None:
    """Beside anchors that do not look at the grid."""
    fields = {**fields, "coordinates": share}
    check(case, SwiftVLM(**fields), slow(fields))


@pytest.mark.parametrize(
    ("taper", "total", "totals"),
    [
        (0.0, 2 * 64 + 5 * 32, (32, 32, 32)),
        (1.0, 2 * 64 + 32 + 2 * 16 + 2 * 8, (32, 16, 8)),
        (2.0, 2 * 64 + 32 + 2 * 8 + 2 * 2, (32, 8, 2)),
    ],
)
def test_taper_by_hand(taper: float, total: int, totals: tuple[int, ...]) -> None:
    """64 tokens, 7 layers, stages after 2, 3 and 5: a half stays first, then of that 1, 1/2 or 1/4 every time.

    Layers 1 and 2 see 64, layer 3 the first total, 4 and 5 the second, 6 and 7 the third.
    """
    shape = ModelShape(layers=7, hidden=32, heads=4, kv_heads=4, intermediate=64)
    made = SwiftVLM(layers=(2, 4, 6), taper=taper).plan(shape, 64, 5, total / 7 / 64)
    assert tuple(cut.total for cut in made.cuts) == totals
    assert tuple(tapered_totals(64, 7, (2, 3, 5), total / 7, taper)) == totals


@pytest.mark.parametrize("taper", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize(("visual", "budget"), [(576, 192), (576, 128), (2880, 640), (100, 61)])
def test_tapered_totals_equal_the_slow_reference(taper: float, visual: int, budget: int) -> None:
    """Of LLaVA-1.5's schedule, where no stage is at its least."""
    made = SwiftVLM(layers=(3, 11, 15), taper=taper).plan(ModelShape(), visual, 60, budget)
    assert [cut.total for cut in made.cuts] == tapered_totals(visual, 32, (3, 10, 14), budget, taper)
