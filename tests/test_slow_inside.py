"""More of the slow methods inside the language model: rules by hand, and what a cut must mean."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.slow_inside import (
    central_costs,
    centred_likeness,
    cluster_choice,
    coordinate_slots,
    greedy_choice,
    grid_cost,
    ivc_choice,
    ivc_foreground,
    recovery_plan,
    shared_quotas,
    sinkhorn,
    slow_greedyprune,
    slow_ivcprune,
    slow_star_cut,
    slow_topv,
    slow_vitcop_cuts,
    topv_choice,
    topv_cost,
)
from tests.reference.slow_llama import (
    attention_block,
    input_norm,
    layer_count,
    mlp_block,
    read_logits,
    rms_norm,
    run_layer,
    visibility,
)
from tests.reference.slow_methods import SlowResult, embed_row, slow_vanilla
from tests.support import IMAGE, features_of, make_row, tiny
from tests.test_slow_rest import FAR, LABELS, NEAR, NORMS, ROW, ivc_example


def test_places_are_stretched_over_their_table() -> None:
    """Without newline the largest cost is FAR. Equal features cost nothing."""
    expected = [[0.01, NEAR / FAR + 0.01, 1.01], [NEAR / FAR, 0, NEAR / FAR], [1.01, NEAR / FAR + 0.01, 0.01]]
    torch.testing.assert_close(topv_cost(torch.ones(3, 2), torch.ones(3, 2), ROW), torch.tensor(expected))


def test_tiles_have_their_own_middle() -> None:
    """Image 0: a tile of 1 x 2 (middle (0, .5)) and one of 3 x 1 without its first (middle (1, 0)). Image 1: one token.

    Distances .5 .5, 0 1, 0; the newlines take the largest, 1. Without any place: 0.
    """
    cells: list[Any] = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 1, 1, 0), None, (0, 1, 2, 0), None, (1, 0, 0, 0)]
    assert central_costs(cells) == [0.5, 0.5, 0, 1, 1, 1, 0]
    assert central_costs([None, None]) == [0, 0]
    assert grid_cost((0, 0, 0, 0), (0, 1, 0, 0)) == grid_cost((0, 0, 0, 0), (1, 0, 0, 0)) == 1
    assert grid_cost((2, 1, 0, 0), (2, 1, 6, 8)) == pytest.approx(1 - math.exp(-0.5))  # 10 apart


@pytest.mark.parametrize(
    ("total", "count", "plan"),
    [
        (12, 6, (4, 4)),  # 4 + 8/4 = 6
        (12, 3, (1, 6)),  # 1 + 11/4 and 1 + 11/5 are 4, 1 + 11/6 is 3
        (24, 7, (2, 5)),  # step 4: 1 + 23/4 = 7, but 1 < 7/6; step 5: 2 + 22/5 = 7
        (40, 12, (2, 4)),  # 2 + 38/4 = 12, 2 is 12/6
        (12, 2, (1, 11)),
        (3, 2, (1, 4)),
    ],
)
def test_the_plan_of_recovery(total: int, count: int, plan: tuple[int, int]) -> None:
    """Divisions are rounded up."""
    assert recovery_plan(total, count) == plan


def test_greedy_choice_by_hand() -> None:
    """1 is like 0 (.95), 2 like it by just .9, 3 like 2 (.91). By saliency: 0, then 2, then 4; 1 and 3 fill up."""
    likeness = torch.zeros(5, 5, dtype=torch.float64)
    for one, other, value in ((0, 1, 0.95), (0, 2, 0.9), (2, 3, 0.91)):
        likeness[one, other] = likeness[other, one] = value
    saliency = [0.9, 0.8, 0.7, 0.6, 0.5]
    choices = [greedy_choice(saliency, likeness, count, 0.9) for count in (0, 2, 3, 4, 5, 9)]
    assert choices == [[], [0, 2], [0, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert greedy_choice([0.5, 0.5, 0.5], torch.ones(3, 3), 2, 0.9) == [0, 1]


def test_likeness_is_centred() -> None:
    """(2,0) (0,2) (4,4) have the mean (2,2): (0,-2) (-2,0) (2,2), cosines 0 and -1/sqrt(2)."""
    half = -math.sqrt(0.5)
    expected = torch.tensor([[1, 0, half], [0, 1, half], [half, half, 1]])
    torch.testing.assert_close(centred_likeness(torch.tensor([[2.0, 0], [0, 2], [4, 4]])), expected)


def test_seeds_join_the_raters() -> None:
    """Row 6 gives visual slots 1..4 .1 .4 .2 .1: the seed is 2, whose row gives .3 .3 0 .25. Means .2 .35 .1 .175.

    Two seeds, 2 and 3: the row of 3 gives .3 to slot 4. Means .4/3, .7/3, .2/3, .65/3.
    """
    weights = torch.zeros(7, 7)
    weights[6, 1:5] = torch.tensor([0.1, 0.4, 0.2, 0.1])
    weights[2, 1:5] = torch.tensor([0.3, 0.3, 0, 0.25])
    weights[3, 4] = 0.3
    seeds, foreground = ivc_foreground(weights, [1, 2, 3, 4], [6], 1)
    assert (seeds, foreground) == ([2], pytest.approx({1: 0.2, 2: 0.35, 3: 0.1, 4: 0.175}))
    seeds, foreground = ivc_foreground(weights, [1, 2, 3, 4], [6], 2)
    assert (seeds, foreground) == ([2, 3], pytest.approx({1: 0.4 / 3, 2: 0.7 / 3, 3: 0.2 / 3, 4: 0.65 / 3}))


def test_coordinate_slots_by_hand() -> None:
    """Frequency 1, slots 1..6: cosines .54 -.42 -.99 -.65 .28 .96, sines .84 .91 .14 -.76 -.96 -.28.

    With a second frequency pi the cosines change by -1 1 -1 1 -1 1 (halved): .58 at 2, .35 at 4, 1.96 at 6.
    """
    slots = list(range(1, 7))
    assert [coordinate_slots(slots, torch.tensor([1.0]), each) for each in (0, 1, 2)] == [[], [2, 6], [1, 2, 6]]
    assert coordinate_slots([3, 4, 5, 6], torch.tensor([1.0]), 1) == [3, 6]  # positions count from the row's start
    # Sines of whole multiples of pi are 0 (but for rounding): the sines' best stay 2 and 1.
    assert coordinate_slots(slots, torch.tensor([1.0, math.pi]), 2) == [1, 2, 6]
    assert coordinate_slots([1, 2, 4, 5], torch.tensor([1.0, math.pi]), 2) == [1, 2, 4]


@pytest.mark.parametrize(
    ("count", "kept"),
    [(1, [4]), (2, [4, 6]), (3, [2, 4, 6]), (4, [2, 3, 4, 6]), (5, [1, 2, 3, 4, 6]), (9, [1, 2, 3, 4, 5, 6])],
)
def test_ivc_fills_in_order(count: int, kept: list[int]) -> None:
    """Coordinates 2 4 6, of which 4 is a seed and first, then 6 (.4) before 2 (.1); then the seed 3; then 1, then 5."""
    foreground = {1: 0.9, 2: 0.1, 3: 0.0, 4: 0.05, 5: 0.8, 6: 0.4}
    assert ivc_choice(foreground, [3, 4], [2, 4, 6], count) == kept


def test_ivcprune_keeps_coordinates() -> None:
    """Half of the 4 tokens: one by cosine, slot 1 (.54 and a 1), one by sine, slot 2 (.91). Then 4, by foreground.

    If only one may stay, it is 2: a seed, and ahead of 1.
    """
    assert slow_ivcprune(*ivc_example(), after=2, count=3, coordinates=0.5).kept == [[1, 2, 4]]
    assert slow_ivcprune(*ivc_example(), after=2, count=1, coordinates=0.5).kept == [[2]]


def test_quotas_by_hand() -> None:
    """Sizes 4 2 1, 2 to share: 1.5 .5 0, halves to even: 2 0 0. 3: 2.25 .75 0: 2 1 0.

    Sizes 3 3: 1 is .5 .5, rounded 0 0: one more for the smaller sum. 3 is 1.5 1.5, rounded 2 2: one less for the
    larger sum. Sizes 2 2 2, 2 to share: .67 each, rounded 1 1 1: one less, too.
    """
    assert shared_quotas([4, 2, 1], 2, [3, 2, 1]) == [2, 0, 0]
    assert shared_quotas([4, 2, 1], 3, [3, 2, 1]) == [2, 1, 0]
    assert shared_quotas([1, 1], 0, [1, 1]) == [0, 0]
    assert shared_quotas([3, 3], 1, [5, 3]) == [0, 1]
    assert shared_quotas([3, 3], 3, [5, 3]) == [1, 2]
    assert shared_quotas([2, 2, 2], 2, [1, 3, 3]) == [1, 0, 1]


def test_clusters_keep_small_norms() -> None:
    """Five of seven: quotas 2 0 0 keep 2 and 6. Six: quotas 2 1 0 keep 5, too. Three: nothing but merged ones."""
    assert cluster_choice(NORMS, LABELS, 5) == ([2, 6], [[1, 4], [3, 5], [7]])
    assert cluster_choice(NORMS, LABELS, 6) == ([2, 5, 6], [[1, 4], [3], [7]])
    assert cluster_choice(NORMS, LABELS, 3) == ([], [[1, 2, 4, 6], [3, 5], [7]])
    assert cluster_choice(NORMS, LABELS, 7) == (list(range(1, 8)), [])
    with pytest.raises(ValueError, match="do not fit"):
        cluster_choice(NORMS, LABELS, 2)


METHODS: list[tuple[Callable[..., SlowResult], dict[str, Any]]] = [
    (slow_topv, {"cells": None}),
    (slow_greedyprune, {}),
    (slow_ivcprune, {"coordinates": 0.3}),
    (slow_star_cut, {}),
]


def example(images: int = 1) -> tuple[Any, Tensor, Tensor, int]:
    """A tiny model with two KV heads, a prompt of it with two tokens behind: model, embeds, visual, prompt_len."""
    model = tiny(kv_heads=2)
    prompt = make_row(model, 3, images=images)
    ids = torch.tensor([*prompt.ids, 7, 9])
    return model, embed_row(model, ids, **features_of(model, prompt)), ids == IMAGE, len(prompt.ids)


def call(method: Callable[..., SlowResult], fields: dict[str, Any], row: tuple[Any, ...], count: int) -> SlowResult:
    """Run a method after 3 layers; images are 4 x 4."""
    if "cells" in fields:
        places: list[Any] = [None] * len(row[1])
        for number, slot in enumerate(torch.nonzero(row[2])[:, 0].tolist()):
            places[slot] = (number // 16, 0, number % 16 // 4, number % 4)
        fields = {"cells": places}
    return method(*row, after=3, count=count, **fields)


@pytest.mark.parametrize(("method", "fields"), METHODS)
def test_a_cut_row_is_a_shorter_row(method: Callable[..., SlowResult], fields: dict[str, Any]) -> None:
    """Behind the stage the model sees a row of the present slots alone, at their old positions."""
    row = example()
    result = call(method, fields, row, 5)
    slots = result.present[-1]
    assert len(slots) == len(row[1]) - 11
    states, positions = result.states[0][slots], torch.tensor(slots).float()
    for layer_index in range(3, layer_count(row[0])):
        states = run_layer(row[0], layer_index, states, positions, [True] * len(slots))
    torch.testing.assert_close(result.logits[slots], read_logits(row[0], states), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "fields"), METHODS)
def test_tokens_behind_the_prompt_choose_nothing(method: Callable[..., SlowResult], fields: dict[str, Any]) -> None:
    """The prompt alone and with later tokens: same choice, same logits."""
    model, embeds, visual, prompt_len = example(images=2)
    longer = call(method, fields, (model, embeds, visual, prompt_len), 5)
    shorter = call(method, fields, (model, embeds[:prompt_len], visual[:prompt_len], prompt_len), 5)
    assert longer.kept == shorter.kept
    torch.testing.assert_close(longer.logits[prompt_len - 1], shorter.logits[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "fields"), METHODS)
@pytest.mark.parametrize(("images", "count"), [(0, 5), (1, 16), (1, 99)])
def test_nothing_to_cut(method: Callable[..., SlowResult], fields: dict[str, Any], images: int, count: int) -> None:
    """No visual tokens, or room for all: the logits of the unpruned model."""
    row = example(images)
    result = call(method, fields, row, count)
    assert len(result.kept[0]) == 16 * images
    torch.testing.assert_close(result.logits, slow_vanilla(row[0], row[1]).logits, atol=1e-5, rtol=0)


def test_topv_compares_inputs_with_outputs() -> None:
    """The rules on the states in front of and behind layers[2]."""
    model, embeds, visual, _ = row = example()
    states = [embeds]
    for layer_index in range(3):
        state = run_layer(model, layer_index, states[-1], torch.arange(len(embeds)), [True] * len(embeds))
        states.append(state.detach())
    slots = torch.nonzero(visual)[:, 0].tolist()
    cells: list[Any] = [(0, 0, number // 4, number % 4) for number in range(16)]
    importance = sinkhorn(topv_cost(states[2][slots], states[3][slots], cells)).sum(dim=1).tolist()
    result = call(slow_topv, {"cells": None}, row, 6)
    assert list(result.scores[0].values()) == pytest.approx(importance)
    assert result.kept == [[slots[token] for token in topv_choice(importance, 6)]]


def test_later_tokens_of_ivcprune_see_the_kept_ones_only() -> None:
    """Masks written out: in layers 0 to 2 the prompt sees all, the two later tokens only what was kept."""
    model, embeds, visual, prompt_len = row = example()
    result = call(slow_ivcprune, {}, row, 5)
    visible = visibility([True] * len(embeds))
    dropped = [slot for slot in torch.nonzero(visual)[:, 0].tolist() if slot not in result.kept[0]]
    visible[prompt_len:, dropped] = False
    positions, states = torch.arange(len(embeds)).float(), embeds
    for layer_index in range(3):
        norm = model.model.language_model.layers[layer_index].post_attention_layernorm.weight
        normed = input_norm(model, layer_index, states)
        middle = states + attention_block(model, layer_index, normed, positions, visible)
        states = middle + mlp_block(model, layer_index, rms_norm(middle, norm, model.config.text_config.rms_norm_eps))
    torch.testing.assert_close(result.states[0], states.detach(), atol=1e-5, rtol=0)
    seeing_all = call(slow_ivcprune, {}, row, 99)
    assert not torch.allclose(result.states[0][prompt_len], seeing_all.states[0][prompt_len], atol=1e-4)
    torch.testing.assert_close(result.states[0][:prompt_len], seeing_all.states[0][:prompt_len], atol=1e-5, rtol=0)


def test_star_cut_uses_given_positions() -> None:
    """A prompt with gaps: with room for all, the layers run at the positions given."""
    model, embeds, visual, prompt_len = example()
    positions = torch.arange(len(embeds)) + 3 * (torch.arange(len(embeds)) > 5)
    result = slow_star_cut(model, embeds, visual, prompt_len, after=3, count=99, positions=positions)
    states = embeds
    for layer_index in range(layer_count(model)):
        states = run_layer(model, layer_index, states, positions.float(), [True] * len(embeds))
    torch.testing.assert_close(result.logits, read_logits(model, states).detach(), atol=1e-5, rtol=0)
    assert not torch.allclose(result.logits, slow_vanilla(model, embeds).logits, atol=1e-3)


def test_vitcop_cuts_and_positions() -> None:
    """Between the cuts old positions, behind the second one places in front of it; later tokens choose nothing."""
    model, embeds, visual, prompt_len = example()
    slots = torch.nonzero(visual)[:, 0].tolist()
    fields = {
        "after": (2, 4),
        "shallow": 9,
        "deep": 4,
        "labels": {slot: number % 3 for number, slot in enumerate(slots)},
    }
    result = slow_vitcop_cuts(model, embeds, visual, prompt_len, **fields)
    text = len(embeds) - 16
    assert [len(present) for present in result.present] == [text + 16] * 2 + [text + 9] * 2 + [text + 4] * 3
    for stage, first, last in ((0, 2, 4), (1, 4, layer_count(model))):
        present = result.present[first]
        places = present if stage == 0 else [result.present[2].index(slot) for slot in present]
        positions = torch.tensor(places)
        states = result.states[stage][present]
        for layer_index in range(first, last):
            states = run_layer(model, layer_index, states, positions.float(), [True] * len(present))
        if stage == 0:
            torch.testing.assert_close(result.states[1][present], states.detach(), atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(result.logits[present], read_logits(model, states).detach(), atol=1e-5, rtol=0)
    shorter = slow_vitcop_cuts(model, embeds[:prompt_len], visual[:prompt_len], prompt_len, **fields)
    assert (shorter.kept, shorter.groups) == (result.kept, result.groups)
    untouched = slow_vitcop_cuts(model, embeds, visual, prompt_len, **{**fields, "shallow": 16, "deep": 16})
    torch.testing.assert_close(untouched.logits, slow_vanilla(model, embeds).logits, atol=0, rtol=0)
    text_only = example(images=0)
    alone = slow_vitcop_cuts(*text_only, **{**fields, "labels": {}})
    torch.testing.assert_close(alone.logits, slow_vanilla(*text_only[:2]).logits, atol=0, rtol=0)
