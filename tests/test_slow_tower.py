"""More of the slow ToMe, CDPruner, STAR and ViTCoP in front of the language model, by hand."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.reference.slow_prelm import Tower
from tests.reference.slow_tower import (
    Block,
    determinantal_choice,
    near_in_grid,
    peak_labels,
    sized_attention,
    slow_star,
    slow_tome,
    slow_vitcop,
    stretched_relevance,
    tome_left,
    tome_merged,
    tome_merges,
)
from tests.support import tiny
from tests.test_slow_prelm import head, random_tower, same, tower
from tests.test_slow_rest import UNIT


def block(**parts: Callable[[Tensor], Tensor]) -> Block:
    """A layer that changes nothing but for the given parts; two heads, queries and values of zeros."""

    def nothing(states: Tensor) -> Tensor:
        return torch.zeros(2, *states.shape)

    neutral: dict[str, Callable[[Tensor], Tensor]] = {
        **dict.fromkeys(("layer_norm1", "layer_norm2"), same),
        **dict.fromkeys(("q", "k", "v"), nothing),
        **dict.fromkeys(("out", "mlp"), lambda states: torch.zeros(len(states), 1)),
    }
    return Block(**{**neutral, **parts})


def line(*places: float) -> Tensor:
    """Keys (m, 1)."""
    return UNIT * torch.tensor(places, dtype=torch.float32)[:, None]


@pytest.mark.parametrize(
    ("patches", "target", "layers", "left"),
    [
        (576, 64, 23, 553),  # 512 / 23 = 22.3, so 23 fewer
        (9, 2, 2, 5),  # 9 - 4 = 5; 4 would be wanted for the last layer, but half of 9 is 5
        (5, 2, 1, 3),  # half of 5
        (8, 2, 2, 4),  # 8 - 3 = 5 could not be halved to 2
        (10, 8, 3, 9),
        (9, 8, 2, 8),  # 9 - 1
        (8, 8, 1, 8),  # already there
    ],
)
def test_the_schedule_of_tome(patches: int, target: int, layers: int, left: int) -> None:
    """Equal steps, at most half of the patches, and no more left than halving can bring down to the target."""
    assert tome_left(patches, target, layers) == left


@pytest.mark.parametrize(("clusters", "labels"), [(1, [0, 0, 0, 0]), (2, [0, 0, 0, 1]), (3, [0, 0, 1, 2])])
def test_clusters_follow_parents(clusters: int, labels: list[int]) -> None:
    """3 x 3, limit .6 * 3 = 1.8 cells. Patches 0, 1, 2 (top row) and 8 (a corner), keys 0 1 3 0.

    Densities: 0 and 8 have 1 + 1 + 1/2 + 1/512 = 2.502, 1 has 1 + 1/2 + 1/2 + 1/16 = 2.06, 2 has 1.07. 0 is densest.
    8 would have 0 as its parent, but that is in the other corner: both are infinitely far from any. 1: parent 0,
    distance 1. 2: of the denser only 1 is near, distance 2. Products inf, 2.06, 2.13, inf: centres 0, 8, 2.
    With one cluster 8 goes to the nearest centre; 2 goes with its parent 1, that with 0. Three: numbered by raster.
    """
    assert peak_labels(line(0, 1, 3, 0), [0, 1, 2, 8], 3, clusters) == labels


def test_the_best_pairs_of_tome_merge() -> None:
    """Even places 2 (.6, .8) and 4 (2, 0) look at the odd ones 1 (1, 0) and 3 (0, 1).

    2: cosines .6 and .8, so 3; 4: 1 and 0, so 1. 4 is first. [CLS] in place 0 equals 1, but takes no part.
    """
    metric = torch.tensor([[1, 0], [1, 0], [0.6, 0.8], [0, 1], [2, 0]])
    assert tome_merges(metric, 0) == {}
    assert tome_merges(metric, 1) == {4: 1}
    assert tome_merges(metric, 2) == {2: 3, 4: 1}
    assert tome_merges(torch.ones(6, 2), 1) == {2: 1}  # places 1, 3 and 5 tie, so do 2 and 4


def test_merged_tokens_weigh_by_size() -> None:
    """Sizes 1 2 1 3 1, places 2 and 4 merge into 1: (2 * 10 + 20 + 40) / 4 = 20. Left are 0, then the odd 1 and 3."""
    states = torch.tensor([[100.0], [10], [20], [30], [40]])
    merged, sizes, order = tome_merged(states, [1, 2, 1, 3, 1], {2: 1, 4: 1})
    assert (merged[:, 0].tolist(), sizes, order) == ([100, 20, 30], [1, 4, 3], [0, 1, 3])
    # Only 4 merges: 2 stays, in front of the odd ones.
    merged, sizes, order = tome_merged(states, [1, 2, 1, 3, 1], {4: 3})
    assert (merged[:, 0].tolist(), sizes, order) == ([100, 20, 10, 32.5], [1, 1, 2, 4], [0, 2, 1, 3])


def test_large_tokens_draw_more_attention() -> None:
    """Two tokens of sizes 1 and 2, head_dim 4: logits 0 and 2 log 3 / 2, weights 1 and 3 * 2: 1/7 and 6/7.

    Values 7 and 14: 13. A second head without logits weighs 1/3 and 2/3: values 3 and 6 give 5. Side by side, doubled.
    """
    keys = torch.zeros(2, 2, 4)
    keys[0, 1, 0] = math.log(3)
    layer = block(
        q=lambda states: torch.tensor([2.0, 0, 0, 0]).expand(2, 2, 4),
        k=lambda states: keys,
        v=lambda states: torch.tensor([[[7.0], [14]], [[3], [6]]]),
        out=lambda states: 2 * states,
    )
    torch.testing.assert_close(sized_attention(layer, torch.zeros(2, 1), [1, 2]), torch.tensor([[26.0, 10]] * 2))


def test_stretched_relevance() -> None:
    """2 4 6: 1e-6 / 4, then .5 and 1 with the same on top; equal values become 1."""
    assert stretched_relevance(torch.tensor([2.0, 4, 6])).tolist() == pytest.approx([2.5e-7, 0.5 + 2.5e-7, 1 + 2.5e-7])
    assert stretched_relevance(torch.tensor([3.0, 3])).tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_cdpruner_raises_determinants_most(seed: int) -> None:
    """Each greedy step by determinants written out, for 7 patches close together in 4 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    embeds, weights = torch.randn(7, 4, generator=generator) + 1, torch.rand(7, generator=generator)
    units = (embeds / embeds.norm(dim=1, keepdim=True)).double()
    kernel = weights[:, None] * (units @ units.T) * weights
    chosen: list[int] = []
    for count in range(1, 5):
        volumes = {}
        for patch in set(range(7)) - set(chosen):
            subset = [*chosen, patch]
            volumes[patch] = float(torch.linalg.det(kernel[subset][:, subset]))
        chosen.append(max(volumes, key=lambda patch: volumes[patch]))
        assert determinantal_choice(embeds, weights, count) == sorted(chosen)


def test_star_averages_heads() -> None:
    """Head 1 gives patch 0 .6 of [CLS]'s row (of 10), head 2 patch 1 .5 (of 8): .725 and .6; patches' rows are even."""
    one, other = head([1, 6, 1, 1, 1]), head([1, 1, 4, 1, 1])
    picture = tower([[0.0]] * 5, {22: (torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]))})
    assert [slow_star(picture, count)[1] for count in (1, 2, 3)] == [[0], [0, 1], [0, 1, 2]]


def test_without_parent_the_nearest_centre_counts() -> None:
    """Patches 0, 1, 6, 8 of 3 x 3, keys 0 1 -4 -3; only 0 and 1 are neighbours, and 0 is the denser of them.

    All but 1 are infinitely far from a denser one, so that the lower of them, 0 and 6, are centres; 8 is 3 from the
    first and 1 from the second.
    """
    assert peak_labels(line(0, 1, -4, -3), [0, 1, 6, 8], 3, 2) == [0, 0, 1, 1]


def test_equal_keys() -> None:
    """All densities equal, all distances 0: lower indices are centres; 2 goes with 0, its lowest denser neighbour.

    In 2 x 2 neighbours are near (1 < 1.2): 2 goes with 0, too.
    """
    assert peak_labels(torch.ones(3, 2), [0, 1, 6], 6, 2) == [0, 1, 0]
    assert peak_labels(torch.ones(3, 2), [0, 1, 2], 2, 2) == [0, 1, 0]
    assert peak_labels(torch.ones(1, 2), [0], 1, 3) == [0]


def test_near_is_at_most_six_tenths() -> None:
    """5 x 5: 3 of 5 steps are exactly .6; one more across, sqrt(10) / 5, is too far. No wrapping."""
    assert near_in_grid(0, 3, 5)
    assert near_in_grid(0, 15, 5)
    assert not near_in_grid(0, 16, 5)
    assert not near_in_grid(4, 5, 5)


@pytest.mark.parametrize("count", [1, 7, 16, 99])
def test_counts_in_front_of_the_language_model(count: int) -> None:
    """As many patches as asked for and there, ascending; with all of them the features are unchanged."""
    picture = random_tower(4)
    for features, places in (slow_star(picture, count), slow_vitcop(picture, count, 3)[:2]):
        assert len(features) == len(places) == min(count, 16)
        assert all(one < other for one, other in itertools.pairwise(places))
        torch.testing.assert_close(features, picture.project(picture.hidden[-2][1:])[places])
    assert set(slow_vitcop(picture, count, 3)[2]) == set(range(min(count, 3)))


@pytest.mark.parametrize("count", [4, 16, 99])
def test_tome_runs_the_tower(count: int) -> None:
    """With room for all, ToMe's own layers must lead to what the CLIP tower of a model computes; else to `count`."""
    model = tiny()
    vision = model.model.vision_tower
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = [states[0] for states in vision(pixels, output_hidden_states=True).hidden_states]
        blocks = []
        for layer in vision.vision_model.encoder.layers if hasattr(vision, "vision_model") else vision.encoder.layers:
            attention = layer.self_attn
            heads = [
                lambda states, linear=linear: linear(states).reshape(len(states), 2, -1).permute(1, 0, 2)
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            ]
            blocks.append(Block(layer.layer_norm1, layer.layer_norm2, *heads, attention.out_proj, layer.mlp))
        picture = Tower(hidden, [], [], 4, same)
        # 16 patches halve at best in each layer that runs: a third layer (the second once more) makes 4 possible.
        features, places = slow_tome(picture, blocks if count > 4 else [*blocks, blocks[1]], count)
    assert len(features) == len(places) == min(count, 16)
    if count >= 16:
        torch.testing.assert_close(features, hidden[-2][1:], atol=1e-5, rtol=1e-5)
