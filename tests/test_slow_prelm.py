"""The slow reference methods in front of the language model, against examples worked out by hand."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .reference.slow_prelm import (
    Tower,
    attention,
    averaged_into,
    contextual_groups,
    crop_budgets,
    crop_runs,
    crop_variances,
    diverse_choice,
    enriched,
    gathered,
    grid_patches,
    local_patches,
    min_max,
    neighbours,
    one_head_row,
    outlier_count,
    pillar_patches,
    region_candidates,
    scaled_depth,
    slow_cdpruner,
    slow_divprune,
    slow_hiprune,
    slow_holov,
    slow_nuwa,
    slow_prumerge,
    slow_prumerge_plus,
    slow_visionzip,
    slow_vispruner,
    slow_vscan,
    target_plus_mean,
)

DEPTH = 24


def square(states: Tensor) -> Tensor:
    """A projector that is not linear, so that merging before it and behind it differ."""
    return states**2


def same(states: Tensor) -> Tensor:
    """A projector that changes nothing."""
    return states


def head(cls_weights: list[float], patch_weights: list[float] | None = None) -> tuple[Tensor, Tensor]:
    """Queries and keys (1, 1 + n, 4) whose attention rows are proportional to the weights: [CLS]'s, then the patches'.

    head_dim is 4, so logits are halved; [CLS] asks (2, 0, 0, 0) and patches ask (0, 2, 0, 0), keys begin with the
    logarithms of the weights. The keys' last two channels are free.
    """
    size = len(cls_weights)
    queries, keys = torch.zeros(1, size, 4), torch.zeros(1, size, 4)
    queries[0, 0, 0] = 2
    queries[0, 1:, 1] = 2
    keys[0, :, 0] = torch.tensor(cls_weights, dtype=torch.float32).log()
    keys[0, :, 1] = torch.tensor(patch_weights or [1] * size, dtype=torch.float32).log()
    return queries, keys


def tower(
    states: list[list[float]],
    heads: dict[int, tuple[Tensor, Tensor]],
    project: Callable[[Tensor], Tensor] = same,
    hidden: dict[int, Tensor] | None = None,
) -> Tower:
    """A tower of 24 layers where only hidden[23], i.e. hidden[-2], and what is given hold numbers, the rest NaN."""
    features = torch.tensor(states, dtype=torch.float32)
    nothing = torch.full((1, len(states), 4), math.nan)
    every_hidden = [torch.full_like(features, math.nan) for _ in range(DEPTH + 1)]
    every_hidden[DEPTH - 1] = features
    for depth, other in (hidden or {}).items():
        every_hidden[depth] = other
    queries = [heads[layer][0] if layer in heads else nothing for layer in range(DEPTH)]
    keys = [heads[layer][1] if layer in heads else nothing for layer in range(DEPTH)]
    return Tower(every_hidden, queries, keys, math.isqrt(len(states) - 1), project)


def random_tower(side: int, layers: int = 4, seed: int = 0) -> Tower:
    """A tower of random numbers, 2 heads of 4, 8 channels, a linear projector to 6."""
    generator = torch.Generator().manual_seed(seed)
    size = 1 + side * side
    hidden = [torch.randn(size, 8, generator=generator) for _ in range(layers + 1)]
    queries = [torch.randn(2, size, 4, generator=generator) for _ in range(layers)]
    keys = [torch.randn(2, size, 4, generator=generator) for _ in range(layers)]
    weight = torch.randn(8, 6, generator=generator)
    return Tower(hidden, queries, keys, side, lambda states: states @ weight)


def numbers(features: Tensor) -> list[float]:
    """Features (m, 1) as a plain list."""
    return [round(float(value), 4) for value in features[:, 0]]


def ascends(places: list[int]) -> bool:
    """Whether places rise strictly."""
    return all(one < other for one, other in itertools.pairwise(places))


# Attention


def test_attention_is_the_softmax_of_scaled_products() -> None:
    """Two tokens, head_dim 4: [CLS] asks (2, 0, 0, 0) and finds keys beginning 0 and log 3.

    Logits 0 and 2 log 3 / sqrt(4) = log 3: weights 1 and 3, so 1/4 and 3/4. The patch asks for the second channel,
    which is log 1 = 0 in both keys: 1/2 and 1/2. A second head with the roles of the keys swapped: 3/4 and 1/4.
    """
    queries, keys = head([1, 3])
    other_queries, other_keys = head([3, 1])
    both = (torch.cat([queries, other_queries]), torch.cat([keys, other_keys]))
    result = attention(tower([[0], [0]], {5: both}), 5)
    expected = [[[0.25, 0.75], [0.5, 0.5]], [[0.75, 0.25], [0.5, 0.5]]]
    torch.testing.assert_close(result, torch.tensor(expected))


def test_depths_scale_with_the_tower() -> None:
    """Of 12 layers: 8 * 12 / 24 = 4, 5 * 12 / 24 = 2.5, which Python rounds to the even 2."""
    assert [scaled_depth(5, 24), scaled_depth(8, 24), scaled_depth(8, 12), scaled_depth(5, 12)] == [5, 8, 4, 2]


# VisionZip


def test_visionzip_by_hand() -> None:
    """Nine patches with the number i as feature, [CLS] with 50; [CLS] attends most to patches 4 and 8.

    dominant 3 = [CLS], 4, 8. Remaining 0 1 2 3 5 6 7, step = 7 // 2 = 3: every third is 0, 3, 7, the first two are
    targets. Keys of 1, 2, 6 point like that of 0; those of 5, 7 like that of 3. Contextual: 0 + (1 + 2 + 6) / 3 = 3
    and 3 + (5 + 7) / 2 = 9. The projector squares, behind the merge: 2500, 16, 64, 9, 81.
    """
    queries, keys = head([1, 1, 1, 1, 1, 5, 1, 1, 1, 4])
    for patch in range(9):
        keys[0, 1 + patch, 2 if patch in (0, 1, 2, 6) else 3] = 1
    states = [[50.0]] + [[float(patch)] for patch in range(9)]
    features, places = slow_visionzip(tower(states, {22: (queries, keys)}, square), 3, 2)
    assert places == [-1, 4, 8, 0, 3]
    assert numbers(features) == [2500, 16, 64, 9, 81]


def test_visionzip_sums_heads_after_the_softmax() -> None:
    """[CLS] over (itself, 4 patches): head 1 weighs 1 6 1 1 1 of 10, head 2 weighs 1 1 4 1 1 of 8.

    Sums: patch 0 .6 + .125 = .725, patch 1 .1 + .5 = .6, the others .225: dominant 2 is [CLS] and patch 0. Logits
    instead would add up to log 6 against log 4. With dominant 3 patch 1 comes next.
    """
    one, other = head([1, 6, 1, 1, 1]), head([1, 1, 4, 1, 1])
    both = (torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]))
    picture = tower([[0.0]] * 5, {22: both})
    assert slow_visionzip(picture, 2, 0)[1] == [-1, 0]
    assert slow_visionzip(picture, 3, 0)[1] == [-1, 0, 1]


def test_a_target_without_members_stays_as_it_is() -> None:
    """Three remaining patches and three targets, step 3 // 3 = 1: nobody is assigned, the count is taken as 1."""
    assert contextual_groups(torch.ones(4, 2), [0, 2, 3], 3) == {0: [], 2: [], 3: []}
    assert float(target_plus_mean(torch.tensor([[7.0], [1.0]]), 0, [])) == 7


# VisPruner


def test_diverse_choice_by_hand() -> None:
    """Patches at (1,0) (1,0) (0,1) (.6,.8) (-1,0), in this order, one removed at a time, down to 2.

    First: even 0 2 4, odd 1 3. Likeness: 0 -> 1 (to 1), 2 -> .8 (to 3), 4 -> max(-1, -.6) = -.6. 0 goes: 2 4 1 3.
    Second: even 2 1, odd 4 3. 2 -> .8, 1 -> .6. 2 goes: 1 4 3, which is the answer for 3.
    Third: even 1 3, odd 4. 1 -> -1, 3 -> -.6. 3 goes: 1 4.
    """
    states = torch.tensor([[1, 0], [1, 0], [0, 1], [0.6, 0.8], [-1, 0]])
    assert diverse_choice(states, [0, 1, 2, 3, 4], 3, at_once=1) == [1, 4, 3]
    assert diverse_choice(states, [0, 1, 2, 3, 4], 2, at_once=1) == [1, 4]


def test_survivors_go_on_by_likeness() -> None:
    """The same patches in the order 4 1 2 3 0: even 4 2 0 at -.6, .8 and 1. 0 goes, and 2 comes before 4."""
    states = torch.tensor([[1, 0], [1, 0], [0, 1], [0.6, 0.8], [-1, 0]])
    assert diverse_choice(states, [4, 1, 2, 3, 0], 4, at_once=1) == [2, 4, 1, 3]


def test_diverse_choice_never_removes_more_than_the_even_half() -> None:
    """Seven patches down to 2 ask for min(8, 5) = 5, but even are 0 2 4 6 only: all four go, left 1 3 5.

    Next round: even 1 5, odd 3, one goes: 1 is like 3, 5 is not. Left 5, 3.
    """
    states = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [1, 0]])
    assert diverse_choice(states, [0, 1, 2, 3, 4, 5, 6], 2) == [5, 3]


def test_of_equally_redundant_patches_the_lower_stays() -> None:
    """Three equal patches in the order 2 0 1, one to go: even are 2 and 1, both at cosine 1 to 0. 1 stays, 2 goes."""
    assert diverse_choice(torch.ones(3, 2), [2, 0, 1], 2) == [1, 0]


def test_vispruner_rounds_the_important_down() -> None:
    """count 3, ratio .6: int(1.8) = 1, patch 0. Rest 1 2 3, two to stay: even 1 and 3, odd 2. 3 is like 2 and goes."""
    states = [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    assert slow_vispruner(tower(states, {22: head([1, 4, 3, 2, 1])}), 3, ratio=0.6)[1] == [0, 1, 2]
    # Two important ones, 0 and 1, would leave 2 and 3, of which 2 goes.
    assert slow_vispruner(tower(states, {22: head([1, 4, 3, 2, 1])}), 3, ratio=0.67)[1] == [0, 1, 3]


def test_vispruner_by_hand() -> None:
    """[CLS] attends to 4, 0, 8, 1, 2, 3, 5, 6, 7 in this order; count 6, ratio 1/3: important 4 and 0.

    Rest 8 1 2 3 5 6 7, four of them to be kept, so min(8, 7 - 4) = 3 go. Even 8 2 5 7, odd 1 3 6 which all point to
    (1, 0). Likeness of the even: 8 (1, 0) 1, 2 (.6, .8) .6, 5 (0, 1) 0, 7 (-1, 0) -1. 8, 2 and 5 go. With 7, 1, 3, 6:
    0 1 3 4 6 7 in raster order.
    """
    weights = {4: 9, 0: 8, 8: 7, 1: 6, 2: 5, 3: 4, 5: 3, 6: 2, 7: 1}
    directions = {2: [0.6, 0.8], 5: [0.0, 1.0], 7: [-1.0, 0.0]}
    states = [[0.0, 0.0]] + [directions.get(patch, [1.0, 0.0]) for patch in range(9)]
    picture = tower(states, {22: head([1] + [weights[patch] for patch in range(9)])}, lambda given: given + 10)
    features, places = slow_vispruner(picture, 6, ratio=1 / 3)
    assert places == [0, 1, 3, 4, 6, 7]
    assert features.tolist() == [[11, 10]] * 5 + [[9, 10]]


# PruMerge


def test_all_heads_as_one_add_up_their_logits() -> None:
    """Two heads of 2: [CLS] asks (2, 0) in both, the patch's keys are (log 2, 0) and (log 3, 0).

    Width 4, root 2: logit (2 log 2 + 2 log 3) / 2 = log 6 against 0 of [CLS] itself: 6/7.
    """
    queries = torch.tensor([[[2.0, 0], [0, 0]], [[2, 0], [0, 0]]])
    keys = torch.tensor([[[0, 0], [math.log(2), 0]], [[0, 0], [math.log(3), 0]]])
    torch.testing.assert_close(one_head_row(queries, keys), torch.tensor([6 / 7]))


def test_outliers_lie_beyond_the_third_quartile() -> None:
    """1 2 3 4 and x: quartiles 2 and 4 (linear), bound 4 + 1.5 * 2 = 7. 7 is none, 8 is one."""
    assert outlier_count(torch.tensor([1.0, 2, 3, 4, 7])) == 0
    assert outlier_count(torch.tensor([1.0, 2, 8, 4, 3])) == 1


def test_enriched_takes_the_nearest_without_normalising() -> None:
    """Patch 0 at (1,0); cosines to the others 0, .8, 1: the two nearest are 3 and 2.

    10 + .5 * 40 + .25 * 20 = 35.
    """
    metric = torch.tensor([[1, 0], [0, 1], [0.8, 0.6], [2, 0]])
    states, received = torch.tensor([[10.0], [99], [20], [40]]), torch.tensor([0.125, 0.125, 0.25, 0.5])
    assert float(enriched(states, metric, received, 0, nearest=2)) == pytest.approx(35)


def test_prumerge_by_hand() -> None:
    """[CLS] weighs itself 4, patch 4 with 12, eight patches with 1 of 24 in all. Features: 24 times the patch's number.

    Quartiles are both 1/24, so patch 4 is the only outlier. It has fewer than 32 others, so it takes all:
    96 + (36 - 4) * 24 / 24 = 128. The extra token is the sum of the dropped: 32. Squared: 16384 and 1024.
    """
    states = [[0.0]] + [[24.0 * patch] for patch in range(9)]
    picture = tower(states, {23: head([4, 1, 1, 1, 1, 12, 1, 1, 1, 1])}, square)
    features, places = slow_prumerge(picture)
    assert places == [4, -1]
    assert features[:, 0].tolist() == pytest.approx([16384, 1024], rel=1e-5)


def test_prumerge_keeps_the_order_of_attention() -> None:
    """Weights 1 3 2 5 of the patches: 3, 1, 2 are kept, in this order, then the extra token."""
    assert slow_prumerge(tower([[1.0]] * 5, {23: head([1, 1, 3, 2, 5])}), 3)[1] == [3, 1, 2, -1]


def test_the_grid_of_prumerge_plus() -> None:
    """576 patches, 32 kept: step 18, every 6th up to 570. 9 patches, 1 kept: step 9, every 3rd before 8.

    Half of them kept: step 2, int(2 / 3) = 0, taken as 1.
    """
    assert grid_patches(576, 32) == list(range(0, 571, 6))
    assert grid_patches(9, 1) == [0, 3, 6]
    assert grid_patches(4, 2) == [0, 1, 2]


def test_prumerge_plus_by_hand() -> None:
    """The picture of PruMerge by hand: patch 6 in place of 4 is first, then of the grid 0 3 6 the new ones 0 and 3.

    Features 24 i, weights 12/24 for patch 6 and 1/24 for the others. 6: 144 + (36 - 6) = 174.
    0: 0 + (36 - 6) + 144 / 2 = 102. 3: 72 + (36 - 6 - 3) + 72 = 171. Extra: 1 + 2 + 4 + 5 + 7 + 8 = 27.
    """
    states = [[0.0]] + [[24.0 * patch] for patch in range(9)]
    features, places = slow_prumerge_plus(tower(states, {23: head([4, 1, 1, 1, 1, 1, 1, 12, 1, 1])}), 1)
    assert places == [6, 0, 3, -1]
    assert features[:, 0].tolist() == pytest.approx([174, 102, 171, 27], rel=1e-5)


# DivPrune and CDPruner


def test_divprune_by_hand() -> None:
    """(1,0) (3,0) (0,1) (-1,0): nearest neighbours at distance 0, 0, 1, 1, so 2 is first (the lower of two).

    From 2 all others are at 1: 0 is next. From {0, 2}: 1 is at 0, 3 at min(2, 1) = 1. So 2, 0, 3, then 1.
    """
    embeds = torch.tensor([[1.0, 0], [3, 0], [0, 1], [-1, 0]])
    assert [slow_divprune(embeds, count) for count in (1, 2, 3)] == [[2], [0, 2], [0, 2, 3]]
    assert slow_divprune(embeds, 9) == [0, 1, 2, 3]


def test_min_max_of_equal_values() -> None:
    """2 4 6 3 become 0 .5 1 .25; equal values become 1."""
    assert min_max(torch.tensor([2.0, 4, 6, 3])).tolist() == [0, 0.5, 1, 0.25]
    assert min_max(torch.tensor([3.0, 3])).tolist() == [1, 1]


def test_cdpruner_by_hand() -> None:
    """Relevance 2 4 6 3 becomes r = 0 .5 1 .25. Patch 2 is first (r^2 = 1).

    Patch 1 has cosine .96 with it: .25 * (1 - .9216) = .0196. Patch 3 is at right angles: .0625 * 1. Patch 0: 0. So 3,
    less relevant, is second, then 1 with .25 * (1 - .9216 - 0) = .0196.
    """
    embeds = torch.tensor([[0, 0, 1], [0.96, 0.28, 0], [5, 0, 0], [0, 0, 2]])
    relevance = torch.tensor([2.0, 4, 6, 3])
    assert [slow_cdpruner(embeds, relevance, count) for count in (1, 2, 3)] == [[2], [2, 3], [1, 2, 3]]
    assert slow_cdpruner(embeds, relevance, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(6))
def test_cdpruner_multiplies_determinants(seed: int) -> None:
    """The greedy steps by determinants written out, for 7 random patches close together in 4 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    embeds, relevance = torch.randn(7, 4, generator=generator) + 1, torch.rand(7, generator=generator)
    units = embeds / embeds.norm(dim=1, keepdim=True)
    weights = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    kernel = weights[:, None] * (units @ units.T) * weights
    chosen: list[int] = []
    for count in range(1, 5):
        volumes = {}
        for patch in range(7):
            if patch not in chosen:
                subset = [*chosen, patch]
                volumes[patch] = float(torch.linalg.det(kernel[subset][:, subset].double()))
        chosen.append(max(volumes, key=lambda patch: volumes[patch]))
        assert slow_cdpruner(embeds, relevance, count) == sorted(chosen)


# VScan


def test_vscan_chooses_by_window_and_then_over_all() -> None:
    """8 x 8 patches, 32 to keep: windows of 2 x 2 give int(16) // 16 = 1 each, 16 in all; 16 come from everywhere.

    Layer 5 rates later patches higher, so every window gives its lower right one: odd row, odd column. Layer 22
    rates earlier patches higher: row 0 (8 patches), of row 1 the four not yet taken, and the first four of row 2.
    """
    up, down = [1.0, *range(1, 65)], [1.0, *range(64, 0, -1)]
    picture = tower([[1.0]] * 65, {5: head(up), 22: head(down)})
    local = [row * 8 + column for row in (1, 3, 5, 7) for column in (1, 3, 5, 7)]
    assert sorted(local_patches(torch.arange(64.0), 8, 32)) == local
    assert slow_vscan(picture, 32)[1] == sorted(local + list(range(8)) + [8, 10, 12, 14] + [16, 17, 18, 19])


def test_vscan_averages_the_dropped_into_the_kept() -> None:
    """(2,0) (0,4) kept; (4,0) and (6,0) are like the first, (1,8) like the second.

    First (2 + 4 + 6) / 3 = 4; second (0 + 1, 4 + 8) / 2 = (.5, 6).
    """
    embeds = torch.tensor([[2.0, 0], [4, 0], [1, 8], [0, 4], [6, 0]])
    torch.testing.assert_close(averaged_into(embeds, [0, 3]), torch.tensor([[4, 0], [0.5, 6]]))


def test_vscan_averages_behind_the_projector() -> None:
    """16 patches, 1 to keep: no window gives any, patch 5 leads in layer 22. Features 1, but 3 in patch 5.

    Squared 1 and 9: (9 + 15) / 16 = 1.5.
    """
    states = [[0.0]] + [[3.0 if patch == 5 else 1.0] for patch in range(16)]
    deep = head([1] + [2 if patch == 5 else 1 for patch in range(16)])
    features, places = slow_vscan(tower(states, {5: head([1] * 17), 22: deep}, square), 1)
    assert places == [5]
    assert numbers(features) == [1.5]


# HiPrune


def test_neighbours_wrap_at_rows_and_clamp_at_the_ends() -> None:
    """3 x 3. Of 3: 2 (end of the row above), 4, 0, 6. Of 8: 7, 5, and 9 and 11, which become 8. Of 1: -2 becomes 0."""
    assert neighbours([3], 3) == [0, 2, 3, 4, 6]
    assert neighbours([8], 3) == [5, 7, 8]
    assert neighbours([1], 3) == [0, 1, 2, 4]
    assert neighbours([2], 3) == [0, 1, 2, 3, 5]


def test_hiprune_by_hand() -> None:
    """count 6, alpha .9: round(6 * .9 / 5) = round(1.08) = 1 anchor.

    Layer 8: [CLS] weighs patch 1 with 11 of 20, the nine patches weigh patch 8 with 3 of 12. Received, mean of ten
    rows: patch 1 (.55 + 9/12) / 10 = .13, patch 8 (.05 + 9 * 3/12) / 10 = .23. So 8 is the anchor, with 5 and 7.
    Layer 22: [CLS] weighs 7, 0, 2, 3 most: 7 is in already, 0, 2, 3 fill up.
    """
    middle = head([1, 1, 11, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1, 3])
    deep = head([1, 6, 1, 5, 4, 1, 1, 1, 9, 1])
    states = [[0.0]] + [[float(patch)] for patch in range(9)]
    features, places = slow_hiprune(tower(states, {8: middle, 22: deep}, square), 6, alpha=0.9)
    assert places == [0, 2, 3, 5, 7, 8]
    assert numbers(features) == [0, 4, 9, 25, 49, 64]


# HoloV


def test_crop_variances_by_hand() -> None:
    """(1,0) (2,0) (0,1). First: cosines 0 (itself, masked), 1, 0; mean 1/2; three deviations of .25 over 2: .375.

    The second likewise. Third: cosines 0 0 0: 0.
    """
    assert crop_variances(torch.tensor([[1.0, 0], [2, 0], [0, 1]])).tolist() == [0.375, 0.375, 0]
    assert crop_variances(torch.tensor([[1.0, 0]])).tolist() == [0]


def test_crop_budgets_by_hand() -> None:
    """Scores 5 3 2 and 7 to keep: 3.5, 2.1, 1.4, so 3 2 1, and one more for the best: 4 2 1.

    In crops of 3 one has no room in the first and goes to the second: 3 3 1. With scores 8 1 1 and 8 to keep:
    6.4 .8 .8, so 6 0 0 and two more: 7 1 0; four have no room: the second takes two, the third two: 3 3 2.
    """
    assert crop_budgets([5, 3, 2], [9, 9, 9], 7) == [4, 2, 1]
    assert crop_budgets([5, 3, 2], [3, 3, 3], 7) == [3, 3, 1]
    assert crop_budgets([8, 1, 1], [3, 3, 3], 8) == [3, 3, 2]


def test_crop_runs_follow_the_raster() -> None:
    """9 patches in 3 runs of 3; in 2 runs the first has one more."""
    assert crop_runs(9, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert crop_runs(9, 2) == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]


def test_holov_by_hand() -> None:
    """Equal features: in a crop of 3 cosines 0 1 1, mean 1, deviation 1 over 2 = .5 for all, brought to the crop's.

    Weights 6 1 1 | 1 1 2 | 1 1 2 and 1 for [CLS]: crop means 8/3, 4/3, 4/3, each times 1.09. 5 to keep: 2.5, 1.25,
    1.25, so 2 1 1 and one more: 3 1 1. The first row, patch 5 of the second, patch 8 of the third.
    """
    states = [[float("nan")]] + [[1.0]] * 9
    picture = tower(states, {22: head([1, 6, 1, 1, 1, 1, 2, 1, 1, 2])}, lambda given: 2 * given)
    features, places = slow_holov(picture, 5, crops=3)
    assert places == [0, 1, 2, 5, 8]
    assert numbers(features) == [2] * 5


def test_holov_counts_variance() -> None:
    """4 patches in 2 crops, equal attention a; the first crop has cosine 1, the second 0; alpha 3; 3 to keep.

    Crop of 2 with cosine 1: cosines 0 1, mean 1, one deviation of 1 over 1 = 1, rescaled to a. With cosine 0: 0.
    Scores a + 3a = 4a and a: shares 2.4 and .6, so 2 0 and one more for the first, which has no room: 2 1. 1 to keep:
    .8 and .2: the first gets it.
    """
    states = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    picture = tower(states, {22: head([1] * 5)})
    assert slow_holov(picture, 3, alpha=3, crops=2)[1] == [0, 1, 2]
    assert slow_holov(picture, 1, alpha=3, crops=2)[1] == [0]
    reversed_picture = tower([states[0], *states[3:], *states[1:3]], {22: head([1] * 5)})
    assert slow_holov(reversed_picture, 1, alpha=3, crops=2)[1] == [2]


# Nuwa


def test_region_candidates_by_hand() -> None:
    """4 x 4, regions {0 1 4 5} {2 3 6 7} {8 9 12 13} {10 11 14 15}, scores are the numbers themselves.

    Up to 4 to keep: one of each, the last: 5 7 13 15. For 5: two of each.
    """
    scores = torch.arange(16.0)
    assert region_candidates(scores, 4, 4) == [5, 7, 13, 15]
    assert region_candidates(scores, 4, 5) == [4, 5, 6, 7, 12, 13, 14, 15]
    assert region_candidates(torch.zeros(9), 3, 9) == list(range(9))  # an odd side reaches every count, too


def test_pillars_reach_the_quantile() -> None:
    """Kept scores 1 2 3 4 5: place .55 * 4 = 2.2, quantile 3.2: 4 and 5."""
    assert pillar_patches(torch.tensor([5.0, 1, 99, 2, 3, 4]), [0, 1, 3, 4, 5]) == [0, 5]


def test_gathered_by_hand() -> None:
    """2 x 2, radius sqrt(280) * 2 / 24 = 1.3944; around patch 3 (1, 1): 1 and 2 at distance 1, 0 at 1.4142, too far.

    a = 1 - 1 / 1.3944 = .2829. Cosines with 3: 1 -> -1, taken as 0; 2 -> .6. Weights 0 0 .6 a 1, sum 1 + .6 a.
    Result 10 + .6 a / (1 + .6 a) * 100 = 10 + 14.51.
    """
    metric = torch.tensor([[1, 0], [-1, 0], [0.6, 0.8], [1, 0]])
    states = torch.tensor([[1000.0], [1000], [100], [10]])
    share = 0.6 * (1 - 12 / math.sqrt(280))
    assert float(gathered(states, metric, 3, 2)) == pytest.approx(10 + 100 * share / (1 + share), rel=1e-5)
    assert 100 * share / (1 + share) == pytest.approx(14.51, abs=0.01)


def test_nuwa_by_hand() -> None:
    """One region of 4, 2 to keep, [CLS] weighs 3 1 1 2: kept 0 and 3, quantile between them, so 0 is a pillar.

    hidden[23] = (1,0) (0,2) (0,-4) (0,6). hidden[16] holds only (0,40) for patch 2, hidden[24] only (0,-20) for
    patch 1, those between nothing: the means of 1, 2, 3 point down, up, up. So 3 gathers from 2 alone, at distance 1:
    (0, 6 - 4 a / (1 + a)), a as above. Patch 0 stays.
    """
    states = [[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, -4.0], [0.0, 6.0]]
    hidden = {depth: torch.zeros(5, 2) for depth in (*range(16, 23), 24)}
    hidden[16][3, 1] = 40
    hidden[24][2, 1] = -20
    features, places = slow_nuwa(tower(states, {22: head([1, 3, 1, 1, 2])}, same, hidden), 2)
    share = 1 - 12 / math.sqrt(280)
    assert places == [0, 3]
    torch.testing.assert_close(features, torch.tensor([[1, 0], [0, 6 - 4 * share / (1 + share)]]))


# All of them


RASTER: dict[str, Callable[[Tower, int], tuple[Tensor, list[int]]]] = {
    "vispruner": slow_vispruner,
    "vscan": slow_vscan,
    "hiprune": slow_hiprune,
    "holov": slow_holov,
    "nuwa": slow_nuwa,
}


@pytest.mark.parametrize("name", RASTER)
@pytest.mark.parametrize(("side", "count"), [(4, 1), (4, 7), (4, 16), (8, 33)])
def test_raster_methods_meet_their_count(name: str, side: int, count: int) -> None:
    """As many tokens as asked for, one per place, in raster order."""
    features, places = RASTER[name](random_tower(side), count)
    assert features.shape == (count, 6)
    assert len(places) == count
    assert ascends(places)
    assert set(places) <= set(range(side * side))
    assert bool(features.isfinite().all())


@pytest.mark.parametrize("name", ["vispruner", "hiprune", "holov"])
def test_keeping_everything_changes_nothing(name: str) -> None:
    """Methods that do not merge hand over all projected patches when all are asked for, or more."""
    picture = random_tower(4)
    features, places = RASTER[name](picture, 99)
    assert places == list(range(16))
    torch.testing.assert_close(features, picture.project(picture.hidden[-2][1:]))


@pytest.mark.parametrize(("dominant", "contextual"), [(1, 1), (5, 3), (10, 7), (4, 0)])
def test_visionzip_meets_its_counts(dominant: int, contextual: int) -> None:
    """[CLS], the dominant ones ascending, the targets ascending, none twice."""
    features, places = slow_visionzip(random_tower(4), dominant, contextual)
    assert len(features) == len(places) == dominant + contextual
    assert places[0] == -1
    assert ascends(places[1:dominant])
    assert ascends(places[dominant:])
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("count", [1, 6, 16])
def test_prumerge_meets_its_count(count: int) -> None:
    """`count` patches and the extra token; with the grid, the same patches come first and none twice."""
    picture = random_tower(4)
    features, places = slow_prumerge(picture, count)
    assert len(features) == len(places) == count + 1
    assert places[-1] == -1
    more_features, more_places = slow_prumerge_plus(picture, count)
    assert more_places[:count] == places[:-1]
    assert len(more_features) == len(more_places) == len(set(more_places))
    assert set(grid_patches(16, count)) <= set(more_places)


@pytest.mark.parametrize("count", [1, 6, 16])
def test_choices_on_embeddings_meet_their_count(count: int) -> None:
    """`count` patches, ascending, also beyond the rank of the embeddings."""
    generator = torch.Generator().manual_seed(2)
    embeds, relevance = torch.randn(16, 5, generator=generator), torch.rand(16, generator=generator)
    for chosen in (slow_divprune(embeds, count), slow_cdpruner(embeds, relevance, count)):
        assert len(chosen) == count
        assert ascends(chosen)


def test_vscan_needs_windows() -> None:
    """A side that 4 does not divide has no 4 x 4 windows."""
    with pytest.raises(ValueError, match="4 divides"):
        slow_vscan(random_tower(3), 2)
