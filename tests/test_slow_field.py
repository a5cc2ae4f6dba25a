"""The slow PDrop, FEATHER, SparseVLM and DART: their rules on examples worked by hand, and what a cut must mean."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.slow_field import (
    choose_raters,
    dart_choice,
    density_peaks,
    merged_last,
    protected_choice,
    recycled_slots,
    slow_dart,
    slow_feather,
    slow_pdrop,
    slow_sparsevlm,
)
from tests.reference.slow_llama import layer_count, read_logits, run_layer
from tests.reference.slow_methods import Group, SlowResult, embed_row, slow_vanilla
from tests.support import IMAGE, LAYERS, features_of, make_row, tiny

Method = Callable[..., SlowResult]


def column(*values: float) -> Tensor:
    """Tokens of one channel each -> (tokens, 1)."""
    return torch.tensor(values)[:, None]


# FEATHER: scores of six slots; 4 leads, then 2, 7, 3, 6, 5.
SCORES = {2: 0.25, 3: 0.15, 4: 0.3, 5: 0.02, 6: 0.08, 7: 0.2}


@pytest.mark.parametrize(
    ("grid", "count", "kept"),
    [
        (set(), 3, [2, 4, 7]),
        ({5}, 3, [2, 4, 5]),  # the worst slot stays
        ({5, 6}, 3, [4, 5, 6]),
        ({3, 5, 6}, 2, [3, 6]),  # the grid alone is too large: its best
        ({3, 5, 6}, 3, [3, 5, 6]),
        ({2, 4}, 3, [2, 4, 7]),  # a grid slot takes no second place
        ({0, 1, 5}, 2, [4, 5]),  # slots that are no candidates protect nothing
        ({5}, 9, [2, 3, 4, 5, 6, 7]),
        ({5}, 0, []),
    ],
)
def test_the_grid_is_protected(grid: set[int], count: int, kept: list[int]) -> None:
    """Grid slots first, the best others in the room that is left."""
    assert protected_choice(SCORES, grid, count) == kept


def test_equal_scores_go_to_the_lower_slot() -> None:
    """Inside the grid and outside of it."""
    assert protected_choice({1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}, {3, 4}, 1) == [3]
    assert protected_choice({1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}, {4}, 2) == [1, 4]


def test_raters_get_more_than_the_average() -> None:
    """One visual token gives 1/8, 2/8 and 5/8: only the last is above 1/3."""
    text = column(0.0, math.log(2), math.log(5))
    assert choose_raters(column(1.0), text) == [2]


def test_the_softmax_runs_over_the_text() -> None:
    """A second visual token gives 10/17, 5/17 and 2/17; the means are .357, .272 and .371.

    Over the visual axis the shares would be (1/2, 1/2), (4/5, 1/5) and (25/26, 1/26): all means 1/2, all raters.
    """
    text = column(0.0, math.log(2), math.log(5))
    assert choose_raters(column(1.0, -1.0), text) == [0, 2]


def test_all_rate_if_none_stands_out() -> None:
    """One text token, or equal ones: nobody exceeds the mean."""
    assert choose_raters(column(1.0, 2.0), column(3.0)) == [0]
    assert choose_raters(column(1.0, 2.0), column(3.0, 3.0, 3.0, 3.0)) == [0, 1, 2, 3]


def test_three_in_ten_dropped_tokens_and_one_are_recycled() -> None:
    """Ten dropped: 3 + 1; three dropped: 0 + 1; none dropped: none."""
    scores = {slot: float(slot % 5) + slot / 100 for slot in range(12)}  # 9, 4, 8, 3, 7, 2, 11, 6, ...
    assert recycled_slots(scores, [4, 9]) == [2, 3, 7, 8]
    assert recycled_slots({5: 0.1, 6: 0.4, 7: 0.3, 8: 0.9}, [8]) == [6]
    assert recycled_slots({5: 0.1, 6: 0.4}, [5, 6]) == []


def test_two_heaps_have_two_centres() -> None:
    """Tokens 0, 1, 10, 12. Nearest two, oneself included: mean squares .5, .5, 2, 2; so 0 is the densest.

    Deltas: 12 (the largest), 1 (to 0), 9 (to 1), 2 (to 10). Products: 7.28, 0.61, 1.22, 0.27.
    Were equal densities no order, token 1 would have no denser one, and a product as large as that of token 0.
    """
    assert density_peaks(column(0.0, 1.0, 10.0, 12.0), 2) == {0: 0, 1: 0, 2: 2, 3: 2}


def test_neighbours_with_and_without_oneself() -> None:
    """Tokens 0, 1, 3, one centre. With oneself: only distance 0 counts, all densities are 1, and 0 is first.

    Without: mean squares 1, 1 and 4, and the tie again goes to 0. With tokens 0, 2, 3: 4, 1 and 1, so it is 1.
    """
    assert set(density_peaks(column(0.0, 1.0, 3.0), 1).values()) == {0}
    assert set(density_peaks(column(0.0, 1.0, 3.0), 1, itself=False).values()) == {0}
    assert set(density_peaks(column(0.0, 2.0, 3.0), 1).values()) == {0}
    assert set(density_peaks(column(0.0, 2.0, 3.0), 1, itself=False).values()) == {1}


def test_distances_shrink_with_the_root_of_the_channels() -> None:
    """Tokens 0, .1 and 2, two centres: mean squares .005, .005, 1.805; products 1.99, .0995, 1.9 * .164 = .31.

    The same on 16 channels, where the plain distances are four times as long. With such distances on one channel:
    mean squares .08, .08, 28.88; products 7.38, .37, 2e-12, so that 0 and 1 are centres.
    """
    line = column(0.0, 0.1, 2.0)
    assert density_peaks(line, 2) == {0: 0, 1: 0, 2: 2}
    assert density_peaks(line.expand(3, 16), 2) == {0: 0, 1: 0, 2: 2}
    assert density_peaks(4 * line, 2) == {0: 0, 1: 1, 2: 1}


def test_centres_stay_with_themselves() -> None:
    """Equal tokens: all products are 0, the lower indices are centres, and the rest goes to the lowest."""
    assert density_peaks(column(5.0, 5.0, 5.0), 2) == {0: 0, 1: 1, 2: 0}


@pytest.mark.parametrize("itself", [True, False])
def test_no_more_clusters_than_tokens(itself: bool) -> None:
    """With too few tokens every token is a centre."""
    assert density_peaks(column(3.0), 4, itself) == {0: 0}
    assert density_peaks(column(3.0, 1.0), 4, itself) == {0: 0, 1: 1}


def test_merged_tokens_move_behind_the_kept_ones() -> None:
    """Kept 2, 4, 5; centres 1 and 3: slots 1..5 then hold what was in 2, 4 and 5, and the two merged tokens."""
    groups = [Group(1, [1], {}, torch.tensor([70.0])), Group(3, [3, 6], {}, torch.tensor([80.0]))]
    states = column(0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 90.0)
    moved = merged_last(states, [2, 4, 5], groups)
    assert moved[:, 0].tolist() == [0.0, 20.0, 40.0, 50.0, 70.0, 80.0, 60.0, 90.0]


# DART: slots 1..7 are visual, 8..10 text. Directions in degrees; largest keys: visual 3, then 6; text 9, then 8.
NORMS = [99.0, 1.0, 2.0, 9.0, 3.0, 4.0, 8.0, 5.0, 6.0, 7.0, 1.0]
DEGREES = torch.tensor([0.0, 10.0, 80.0, 0.0, 170.0, 100.0, 90.0, 60.0, 135.0, 45.0, 0.0])
FEATURES = torch.stack([DEGREES.deg2rad().cos(), DEGREES.deg2rad().sin()], dim=1)
VISUAL, TEXT = [1, 2, 3, 4, 5, 6, 7], [8, 9, 10]


@pytest.mark.parametrize(
    ("keep", "pivots", "kept"),
    [
        (1, 1, [3]),
        (2, 1, [3, 4]),  # one to add, by the first pivot: slot 4 is 170 degrees away
        (3, 1, [3, 4, 5]),  # then slot 9, at 45 degrees, adds slot 5 (55 away; the others 35, 35, 45, 15)
        (4, 1, [3, 4, 5, 6]),  # slot 3 adds two, 170 and 100 away; slot 9 adds 6, 45 away
        (2, 2, [3, 6]),
        (6, 2, [1, 3, 4, 5, 6, 7]),  # 3 adds 4; 6 adds 1 (80 away); 9 adds 5 (55); 8, at 135, adds 7 (75; 2 is 55)
        (7, 2, VISUAL),
        (99, 2, VISUAL),
        (1, 2, [3]),  # fewer kept than pivots: the largest
        (0, 2, []),
    ],
)
def test_dart_adds_what_is_least_like_its_pivots(keep: int, pivots: int, kept: list[int]) -> None:
    """Worked on directions in the plane, where the lowest cosine is the largest angle."""
    assert dart_choice(NORMS, FEATURES, VISUAL, TEXT, keep, pivots) == kept


def test_dart_pivots_take_turns_as_a_set_does() -> None:
    """Of the two slots 8 and 1 the set has 8 first (the eighth of eight places is the first one), though 1 is larger.

    So 8, looking along 90 degrees, takes the one to add: slot 3 (at 0) and not slot 2 (at 170), which 1 would take.
    """
    degrees = torch.tensor([0.0, 0.0, 170.0, 0.0, 45.0, 45.0, 45.0, 45.0, 90.0])
    features = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    norms = [0.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 8.0]
    assert list({1, 8}) == [8, 1]
    assert dart_choice(norms, features, [1, 2, 3, 4], [5, 6, 7, 8], 2, 1) == [1, 3]


def test_dart_ties_go_to_the_lower_slot() -> None:
    """Equal keys and equal directions: the first slots are pivots, and the first of the others are added."""
    assert dart_choice([1.0] * 8, torch.ones(8, 2), [1, 2, 3, 4, 5], [6, 7], 3, 1) == [1, 2, 3]


def test_dart_without_visual_tokens() -> None:
    """Nothing to keep."""
    assert dart_choice([1.0] * 3, torch.ones(3, 2), [], [0, 1, 2], 5, 4) == []


METHODS: list[tuple[Method, dict[str, Any], bool]] = [  # the method, one stage of it after 3 layers, renumbered?
    (slow_pdrop, {"layers": (3,), "counts": (5,)}, True),
    (slow_pdrop, {"layers": (3,), "counts": (5,), "positions": "original"}, False),
    (slow_feather, {"after": (3,), "counts": (5,), "grid": {3, 6, 9}}, False),
    (slow_sparsevlm, {"after": (3,), "counts": ((4, 2),)}, True),
    (slow_sparsevlm, {"after": (3,), "counts": ((5, 2),), "version": "plus"}, False),
    (slow_dart, {"after": 3, "keep": 5, "pivots": 2}, False),
]


def example(images: int = 1) -> tuple[Any, Tensor, Tensor, int]:
    """A tiny model, a prompt of it with two tokens behind: model, embeds, visual, prompt_len."""
    model = tiny()
    prompt = make_row(model, 3, images=images)
    ids = torch.tensor([*prompt.ids, 7, 9])
    return model, embed_row(model, ids, **features_of(model, prompt)), ids == IMAGE, len(prompt.ids)


@pytest.mark.parametrize(("method", "fields", "renumbered"), METHODS)
def test_a_cut_row_is_a_shorter_row(method: Method, fields: dict[str, Any], renumbered: bool) -> None:
    """After the stage the rest of the model sees a row that holds only the present slots, and nothing else."""
    model, embeds, visual, prompt_len = example()
    result = method(model, embeds, visual, prompt_len, **fields)
    slots = result.present[-1]
    assert len(slots) == len(embeds) - 16 + 5 + (renumbered and method is slow_sparsevlm)
    states = result.states[0][slots]
    positions = torch.arange(len(slots)) if renumbered else torch.tensor(slots)
    for layer_index in range(3, layer_count(model)):
        states = run_layer(model, layer_index, states, positions.float(), [True] * len(slots))
    torch.testing.assert_close(result.logits[slots], read_logits(model, states), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "fields", "renumbered"), METHODS)
def test_tokens_behind_the_prompt_choose_nothing(method: Method, fields: dict[str, Any], renumbered: bool) -> None:
    """The prompt alone and with later tokens: same choice, same logits."""
    model, embeds, visual, prompt_len = example(images=2)
    longer = method(model, embeds, visual, prompt_len, **fields)
    shorter = method(model, embeds[:prompt_len], visual[:prompt_len], prompt_len, **fields)
    assert (longer.kept, longer.anchors, longer.groups) == (shorter.kept, shorter.anchors, shorter.groups)
    torch.testing.assert_close(longer.logits[prompt_len - 1], shorter.logits[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "fields", "renumbered"), METHODS)
def test_a_row_without_images_is_left_alone(method: Method, fields: dict[str, Any], renumbered: bool) -> None:
    """No candidates, nothing kept, the logits of the unpruned model."""
    model, embeds, visual, prompt_len = example(images=0)
    result = method(model, embeds, visual, prompt_len, **fields)
    assert result.kept == [[]]
    torch.testing.assert_close(result.logits, slow_vanilla(model, embeds).logits, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        (slow_pdrop, {"layers": (2, 4), "counts": (16, 99)}),
        (slow_feather, {"after": (2, 4), "counts": (16, 99), "grid": {3}}),
        (slow_dart, {"after": LAYERS, "keep": 16}),
    ],
)
def test_keeping_everything_changes_nothing(method: Method, fields: dict[str, Any]) -> None:
    """The logits of the unpruned model."""
    model, embeds, visual, prompt_len = example()
    result = method(model, embeds, visual, prompt_len, **fields)
    torch.testing.assert_close(result.logits, slow_vanilla(model, embeds).logits, atol=0, rtol=0)


def test_sparsevlm_counts_and_contents() -> None:
    """16 visual tokens; keep 6, so 10 dropped and 4 recycled into 2 clusters; then 8 - 1 kept, 1 dropped and recycled.

    The first merged token is the mean of its members, and the kept contents stand in front of it.
    """
    model, embeds, visual, prompt_len = example()
    result = slow_sparsevlm(model, embeds, visual, prompt_len, after=(2, 4), counts=((6, 2), (99, 3)))
    unpruned = run_layer(model, 0, embeds, torch.arange(len(embeds)), [True] * len(embeds))
    unpruned = run_layer(model, 1, unpruned, torch.arange(len(embeds)), [True] * len(embeds))
    assert [len(slots) for slots in result.kept] == [6, 7]
    assert [len(groups) for groups in result.groups] == [4, 1]
    visible = sorted(result.kept[0] + result.anchors[0])
    assert list(result.scores[1]) == visible
    members = [slot for slot, group in result.groups[0].items() if group == 0]
    torch.testing.assert_close(result.states[0][visible[:6]], unpruned[result.kept[0]])
    torch.testing.assert_close(result.states[0][visible[6]], unpruned[members].mean(dim=0))


@pytest.mark.parametrize("after", [(), (0, 2), (4, 2), (2, 2), (2, LAYERS + 1)])
def test_stages_must_rise(after: tuple[int, ...]) -> None:
    """Within the model, one after the other."""
    model, embeds, visual, prompt_len = example()
    with pytest.raises(ValueError, match="must rise"):
        slow_feather(model, embeds, visual, prompt_len, after=after, counts=(1,) * len(after), grid=set())
