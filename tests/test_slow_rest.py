"""The slow ToMe, CDPruner, STAR, ViTCoP, TopV, GreedyPrune and IVC-Prune, against examples worked out by hand."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import slow_inside, slow_tower
from tests.reference.slow_prelm import Tower
from tests.test_slow_prelm import head, square, tower

# ToMe


def test_tome_by_hand() -> None:
    """Four patches: a direction (two channels, the metric) and a number. The attention adds the mean of numbers + 10.

    The MLP adds the number + 1. Directions of [CLS] and the patches: (1,0); (1,0), (0,1), (.6,.8), (1,0).
    Layer 0: the mean of 0 10 20 30 40 is 20, so all get 30: 30 40 50 60 70. One of four merges: patch 3 (place 4) is
    like patch 0 (place 1) by 1, patch 1 (place 2) like patch 2 (place 3) by .8. Patch 0: (40 + 70) / 2 = 55, size 2.
    Order [CLS], 1, 0, 2: 30 50 55 60, behind the MLP 61 101 111 121.
    Layer 1: (61 + 101 + 2 * 111 + 121) / 5 = 101, all get 111: 172 212 222 232. One of three merges: patch 0, the only
    one in an even place, is like patch 1 by 0 and like patch 2 by .6. Patch 2: (2 * 222 + 232) / 3 = 676 / 3.
    Behind the MLP: patch 1 has 425, patch 2 1352 / 3 + 1.
    """
    number = torch.tensor([0.0, 0, 1])
    spread = torch.tensor([0.0, 5])  # the heads' keys differ, their mean is the direction
    layer = slow_tower.Block(
        layer_norm1=lambda states: states + 10 * number,
        layer_norm2=lambda states: states + number,
        q=lambda states: torch.zeros(2, len(states), 2),
        k=lambda states: torch.stack([states[:, :2] + spread, states[:, :2] - spread]),
        v=lambda states: torch.stack([states * number, torch.full_like(states, 99)]),
        out=lambda states: states[:, :3],
        mlp=lambda states: states * number,
    )
    last = dataclasses.replace(layer, mlp=lambda states: states * math.nan)  # never runs
    first = torch.tensor([[1, 0, 0], [1, 0, 10], [0, 1, 20], [0.6, 0.8, 30], [1, 0, 40]])
    picture = Tower([first], [], [], 2, lambda states: states[:, 2:] + 1000)
    features, places = slow_tower.slow_tome(picture, [layer, last], 3)
    assert places == [0, 1, 2]
    assert features[:, 0].tolist() == pytest.approx([1111, 1101, 1121])
    features, places = slow_tower.slow_tome(picture, [layer, layer, last], 2)
    assert places == [1, 2]
    assert features[:, 0].tolist() == pytest.approx([1425, 1001 + 1352 / 3])
    assert slow_tower.slow_tome(picture, [layer, layer, last], 9)[1] == [0, 1, 2, 3]


def test_cdpruner_by_hand() -> None:
    """Projected (1,0,0) (.8,.6,0) (0,0,3) (0,2,0), relevance 5 5 1 3: r = 1, 1, almost 0, .5.

    First 0 (1, before the equal 1). Then 1: 1 - .64 = .36 against .25 of 3. Then 3 lies between those two: 0. Patch 2
    has (1e-6 / 4) ** 2, little but more, and is third.
    """
    states = [[0.0, 0, 0], [1, 0, 0], [0.8, 0.6, 0], [0, 0, 3], [0, 2, 0]]
    picture = tower(states, {}, lambda given: given * 2)
    relevance = torch.tensor([5.0, 5, 1, 3])
    chosen = [slow_tower.slow_cdpruner(picture, relevance, count)[1] for count in (1, 2, 3, 9)]
    assert chosen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    features, _ = slow_tower.slow_cdpruner(picture, relevance, 2)
    torch.testing.assert_close(features, torch.tensor([[2, 0, 0], [1.6, 1.2, 0]]))


def test_cdpruner_relevance_by_hand() -> None:
    """States (2, 7) and (0, -1), plus 1, the second channel halved: (3, 4) and (1, 0). Segments (1, 0) and (0, 2).

    Cosines .6 .8 and 1 0: minus .7 and minus .5.
    """
    states, texts = torch.tensor([[2.0, 7], [0, -1]]), torch.tensor([[1.0, 0], [0, 2]])
    halves = torch.tensor([1, 0.5])
    result = slow_tower.cdpruner_relevance(states, lambda given: given + 1, lambda given: given * halves, texts)
    assert result.tolist() == pytest.approx([-0.7, -0.5])


def test_star_counts_every_row() -> None:
    """Layer 22: [CLS] weighs 1 1 5 1 2 of 10, the four patches 1 1 1 4 1 of 8. Received, five rows together:

    .1 + 4/8 = .6; .5 + .5 = 1; .1 + 16/8 = 2.1; .2 + .5 = .7. So 2, 1, 3, 0; by [CLS] alone 1 and 3 would lead.
    """
    picture = tower([[0.0], [1], [2], [3], [4]], {22: head([1, 1, 5, 1, 2], [1, 1, 1, 4, 1])}, square)
    features, places = slow_tower.slow_star(picture, 2)
    assert (places, features[:, 0].tolist()) == ([1, 2], [4, 9])
    assert [slow_tower.slow_star(picture, count)[1] for count in (1, 3, 9)] == [[2], [1, 2, 3], [0, 1, 2, 3]]


# ViTCoP in front of the language model. Keys stand on a line in steps of UNIT: d steps count 2 ** -(d ** 2).

UNIT = 8 * math.sqrt(math.log(2))


def test_vitcop_by_hand() -> None:
    """2 x 2, neighbours near. [CLS] weighs patches 4 4 1 4: 2 goes. Keys 0 1 3 of the others (same in all else).

    Densities 1 + 1/2 + 1/512 = 1.502, 1/2 + 1 + 1/16 = 1.5625, 1.06: 1 is densest, infinitely far from a denser one;
    0 is 1 from it and 3 is 2: products 1.502 and 2.12. Centres 1, then 3; 0 goes with 1. The second head's [CLS] row is
    even, so it changes nothing.
    """
    queries, keys = head([1, 4, 4, 1, 4])
    keys[0, 1:, 2] = UNIT * torch.tensor([0, 1, 9, 3])
    heads = (torch.cat([queries, torch.zeros_like(queries)]), torch.cat([keys, torch.zeros_like(keys)]))
    picture = tower([[0.0], [1], [2], [3], [4]], {22: heads}, square)
    features, places, labels = slow_tower.slow_vitcop(picture, 3, 2)
    assert (features[:, 0].tolist(), places, labels) == ([1, 4, 16], [0, 1, 3], [0, 0, 1])
    assert slow_tower.slow_vitcop(picture, 3, 1)[2] == [0, 0, 0]


# TopV

ROW: list[Any] = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2)]
NEAR, FAR = 1 - math.exp(-1 / 200), 1 - math.exp(-4 / 200)


def test_topv_costs_by_hand() -> None:
    """A row of three and a newline; inputs 0 1 2 3, outputs 0 1 2 5.

    Squares of differences are divided by the largest, 25. The places cost NEAR, FAR or 1 (newline), 0 to 1 as they
    are. From the middle: 1 0 1, and 1 for the newline, times .01, by row.
    """
    inputs, outputs = torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[0.0], [1], [2], [5]])
    expected = [
        [0.01, 0.04 + NEAR + 0.01, 0.16 + FAR + 0.01, 1 + 1 + 0.01],
        [0.04 + NEAR, 0, 0.04 + NEAR, 0.64 + 1],
        [0.16 + FAR + 0.01, 0.04 + NEAR + 0.01, 0.01, 0.36 + 1 + 0.01],
        [0.36 + 1 + 0.01, 0.16 + 1 + 0.01, 0.04 + 1 + 0.01, 0.16 + 0.01],
    ]
    torch.testing.assert_close(slow_inside.topv_cost(inputs, outputs, [*ROW, None]), torch.tensor(expected))


def test_sinkhorn_by_hand() -> None:
    """Kernel 1 1 / 1 3. Rows to 1/2: 1/4 1/4 / 1/8 3/8; columns to 1/2: 1/3 1/5 / 1/6 3/10.

    Again: 5/16 3/16 / 5/28 9/28, then 7/22 7/38 / 2/11 6/19. Again: 19/60 11/60 / 19/104 33/104, then 13/41 13/71 /
    15/82 45/142.
    """
    cost = -0.1 * torch.tensor([[1.0, 1], [1, 3]]).log()
    once, thrice = [[1 / 3, 1 / 5], [1 / 6, 3 / 10]], [[13 / 41, 13 / 71], [15 / 82, 45 / 142]]
    torch.testing.assert_close(slow_inside.sinkhorn(cost, iterations=1), torch.tensor(once))
    torch.testing.assert_close(slow_inside.sinkhorn(cost), torch.tensor(thrice))


def test_topv_takes_the_best_and_every_nth_other() -> None:
    """Of 12, four best are 3 7 8 11; others 0 1 2 4 5 6 9 10, every fourth: 0, 5. For 3: 7, and of others 0, 6."""
    importance = [0.0] * 12
    importance[7], importance[3], importance[11], importance[8] = 4, 3, 2, 1
    assert slow_inside.topv_choice(importance, 6) == [0, 3, 5, 7, 8, 11]
    assert slow_inside.topv_choice(importance, 3) == [0, 6, 7]
    assert slow_inside.topv_choice(importance, 13) == list(range(12))


# A language model whose layers can be worked by hand: attention and MLP add nothing (but for a shift); queries,
# keys and values are looked up. RoPE turns channels 0 and 2 only: in the other pair its frequency is 1e-15.


def by_hand(width: int, layers: list[dict[str, Tensor]]) -> Any:
    """A model without attention outputs; per layer q, k, v (2, width, 4) for the states sqrt(width) * one-hot.

    shift (width,) is what the layer adds to every state.
    """

    def linear(weight: Tensor, bias: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(weight=weight, bias=bias)

    def layer(tables: dict[str, Tensor]) -> SimpleNamespace:
        heads = {}
        for name in "qkv":
            table = tables.get(name, torch.zeros(2, width, 4))
            heads[f"{name}_proj"] = linear(table.permute(0, 2, 1).reshape(8, width) / math.sqrt(width))
        narrow, norm = linear(torch.zeros(1, width)), linear(torch.ones(width))
        shift = linear(torch.zeros(width, 1), tables.get("shift"))
        return SimpleNamespace(
            input_layernorm=norm,
            post_attention_layernorm=norm,
            self_attn=SimpleNamespace(o_proj=linear(torch.zeros(width, 8)), **heads),
            mlp=SimpleNamespace(gate_proj=narrow, up_proj=narrow, down_proj=shift),
        )

    rope = {"rope_type": "default", "rope_theta": 1e30}
    config = SimpleNamespace(num_hidden_layers=len(layers), num_attention_heads=2, head_dim=4, rope_parameters=rope)
    config.hidden_act, config.rms_norm_eps = "silu", 1e-12
    language = SimpleNamespace(layers=[layer(tables) for tables in layers], norm=linear(torch.ones(width)))
    return SimpleNamespace(
        config=SimpleNamespace(text_config=config),
        model=SimpleNamespace(language_model=language),
        lm_head=linear(torch.eye(width)),
    )


def one_hot(tokens: int, last: int) -> tuple[Tensor, Tensor]:
    """Embeddings (tokens, tokens) that by_hand looks up (root mean square 1); slots 1..last are visual (tokens,)."""
    slots = torch.arange(tokens)
    return math.sqrt(tokens) * torch.eye(tokens), (slots >= 1) & (slots <= last)


def test_star_cut_by_hand() -> None:
    """Slots 1..4 are visual, 5 6 7 text, 8 comes later. Layer 1, head 0: 5 asks for channel 1, 6 and 7 for channel 3.

    Channel 1 weighs slot 1 with 5, all else with 1: the row of 5 has .5 and .1s (of 10). Channel 3 weighs slot 3 with
    2: rows of 6 and 7 have 2/8 and 2/9, and 1/8 and 1/9, together 34/72 and 17/72. Head 1 is even: 1/6 + 1/7 + 1/8 =
    73/168. Means of 2 heads and 3 rows. Slot 1 leads, though the last row has 3 first.
    """
    queries, keys = torch.zeros(2, 9, 4), torch.zeros(2, 9, 4)
    queries[0, 5, 1] = queries[0, 6, 3] = queries[0, 7, 3] = 2
    keys[0, 1, 1], keys[0, 3, 3] = math.log(5), math.log(2)
    model = by_hand(9, [{}, {"q": queries, "k": keys}, {}])
    result = slow_inside.slow_star_cut(model, *one_hot(9, 4), 8, after=2, count=2)
    even = 73 / 168
    expected = {1: 0.5 + 17 / 72, 2: 0.1 + 17 / 72, 3: 0.1 + 34 / 72, 4: 0.1 + 17 / 72}
    assert result.scores[0] == pytest.approx({slot: (value + even) / 6 for slot, value in expected.items()}, rel=1e-5)
    assert result.kept == [[1, 3]]
    assert result.present == [list(range(9))] * 2 + [[0, 1, 3, 5, 6, 7, 8]]
    assert slow_inside.slow_star_cut(model, *one_hot(9, 4), 8, after=2, count=1).kept == [[1]]


@pytest.mark.parametrize(("count", "kept"), [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [1, 2, 3, 4])])
def test_greedyprune_by_hand(count: int, kept: list[int]) -> None:
    """Behind layer 1 the visual states are (2,0) (4,0) (0,2) (0,-2), the last prompt token (1,0): saliency 1 1 0 0.

    Mean (1.5,0): (.5,0) (2.5,0) (-1.5,2) (-1.5,-2). The second is like the first (1) and waits; the first and third
    have -.6, the third and fourth -1.75 / 6.25. The layers each add (1,0), so in front of them all is different.
    """
    states = torch.tensor([[9.0, 9], [2, 0], [4, 0], [0, 2], [0, -2], [1, 0], [5, 5]])
    shift = torch.tensor([1.0, 0])
    model = by_hand(2, [{"shift": shift}, {"shift": shift}, {"shift": torch.tensor([7.0, 7])}])
    embeds = states - 2 * shift  # what layers 0 and 1 add
    result = slow_inside.slow_greedyprune(model, embeds, one_hot(7, 4)[1], 6, after=2, count=count)
    assert result.kept == [kept]
    assert result.scores[0] == pytest.approx({1: 1, 2: 1, 3: 0, 4: 0})
    torch.testing.assert_close(result.states[0], states)


# IVC-Prune


def ivc_example() -> tuple[Any, Tensor, Tensor, int]:
    """Slots 1..4 visual, 5 6 7 text, 8 later; only the values of layer 1, head 0 (of 2), differ.

    Row 7 has (2, 0), 1..4 have (log 1, 0) (log 4, 2) (log 2, 0) (log 1, 3). Logits are halved products.
    """
    values = torch.zeros(2, 9, 4)
    values[0, 7, 0] = 2
    values[0, 1:5, 0] = torch.tensor([1.0, 4, 2, 1]).log()
    values[0, 2, 1], values[0, 4, 1] = 2, 3
    values[0, 8, 0] = 9  # would take nearly all of row 7 if it were there
    return by_hand(9, [{}, {"v": values}, {}]), *one_hot(9, 4), 8


def test_ivcprune_by_hand() -> None:
    """5 and 6 are skipped; row 7 weighs 1 4 2 1, 1 for slots 0 5 6 and e^2 for itself: the seed is 2.

    Row 2: e^0 for 1, e^(log 4 log 4 / 2 + 2) for itself, e^(log 4 log 2 / 2) for 3, e^3 for 4, 1 for 0 5 6, e^log 4 for
    7. Head 1 is even, 1/8. Mean of two rows and two heads: 2, 4, 3, 1. .1 of 4 tokens rounds to no coordinate.
    """
    result = slow_inside.slow_ivcprune(*ivc_example(), after=2, count=2)
    seven = 1 + 4 + 2 + 1 + 3 + math.exp(2)
    itself, three, four = math.exp(math.log(4) ** 2 / 2 + 2), math.exp(math.log(4) * math.log(2) / 2), math.exp(3)
    two = 1 + itself + three + four + 3 + 4
    first_head = {1: 1 / seven + 1 / two, 2: 4 / seven + itself / two, 3: 2 / seven + three / two}
    first_head[4] = 1 / seven + four / two
    expected = {slot: (value / 2 + 1 / 8) / 2 for slot, value in first_head.items()}
    assert result.scores[0] == pytest.approx(expected, rel=1e-5)
    assert sorted(expected, key=lambda slot: -expected[slot]) == [2, 4, 3, 1]
    assert result.kept == [[2, 4]]


# ViTCoP in the language model

NORMS = {1: 9.0, 2: 1.0, 3: 4.0, 4: 5.0, 5: 3.0, 6: 2.0, 7: 8.0}
LABELS = {1: 0, 2: 0, 3: 1, 4: 0, 5: 1, 6: 0, 7: 2}


def test_vitcop_cuts_by_hand() -> None:
    """Slots 1..7 visual, 0 8 9 text. Behind layer 0, norms as in NORMS (7 and -7 in another channel cancel).

    Sizes 4 2 1, 2 kept besides the merged ones: 2 * 3/4, 2 * 1/4 and 0, halves to even: 2 and 6 stay. 1 and
    4 merge in slot 4: s4 + (s1 + s4) / 2 = 1.5 s4 + .5 s1; 3 and 5 in slot 5; 7 becomes 2 s7. Behind layer 2 keys are
    1 3 3 1 3 1.2 2: merged keys are divided by the root mean square, sqrt(1.5^2 + .5^2) = 1.58: slot 4 has
    (1.5 + .5) / 1.58 = 1.26, slot 5 (4.5 + 1.5) / 1.58 = 3.79; the doubled s7 still 2. 6 and 4 stay.
    """
    shallow, deep = torch.zeros(2, 10, 4), torch.zeros(2, 10, 4)
    for slot, norm in NORMS.items():
        shallow[:, slot, 0] = norm
    shallow[:, 1:8, 1] = torch.tensor([[7.0], [-7.0]])  # no norm of the mean
    deep[:, 1:8, 0] = torch.tensor([1, 3, 3, 1, 3, 1.2, 2])
    model, (embeds, visual) = by_hand(10, [{"k": shallow}, {}, {"k": deep}, {}]), one_hot(10, 7)
    fields = {"after": (1, 3), "shallow": 5, "deep": 2, "labels": LABELS}
    result = slow_inside.slow_vitcop_cuts(model, embeds, visual, 10, **fields)
    assert result.kept == [[2, 6], [4, 6]]
    assert result.anchors == [[4, 5, 7], []]
    assert result.groups[0] == {1: 0, 4: 0, 3: 1, 5: 1, 7: 2}
    assert result.scores[0] == pytest.approx(NORMS)
    root = math.sqrt(2.5)
    assert result.scores[1] == pytest.approx({2: 3, 4: 2 / root, 5: 6 / root, 6: 1.2, 7: 2})
    assert result.present[1] == [0, 2, 4, 5, 6, 7, 8, 9]
    assert result.present[3] == [0, 4, 6, 8, 9]
    expected = torch.stack([1.5 * embeds[4] + 0.5 * embeds[1], 1.5 * embeds[5] + 0.5 * embeds[3], 2 * embeds[7]])
    torch.testing.assert_close(result.states[0][[4, 5, 7]], expected)
