"""The engine against the slow references of TopV, GreedyPrune, IVC-Prune, STAR, ToMe, CDPruner and ViTCoP."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import swiftvlm
from swiftvlm.families import find_family
from swiftvlm.methods.base import Method
from swiftvlm.methods.cdpruner import CDPruner
from swiftvlm.methods.greedyprune import GreedyPrune
from swiftvlm.methods.ivcprune import IVCPrune
from swiftvlm.methods.star import Star
from swiftvlm.methods.tome import ToMe
from swiftvlm.methods.topv import TopV
from swiftvlm.methods.vitcop import ViTCoP
from swiftvlm.reductions.vitcop import Clustered
from swiftvlm.tower import Block, Seen
from tests.reference import slow_inside, slow_tower
from tests.reference.slow_methods import SlowResult
from tests.reference.slow_prelm import Tower
from tests.support import IMAGE, LAYERS, Row, batch_of, make_row, tiny
from tests.test_against_reference import CASES, EXAMPLES, STEPS, Case, check, decode, everywhere
from tests.test_before_reference import random_tower, seen_of, tower_of

CLOSE = 1e-5
FEWER = settings(EXAMPLES, max_examples=8)


@given(case=CASES, after=st.integers(1, LAYERS - 1), keep=st.integers(1, 40))
@everywhere(after=2, keep=7)
@FEWER
def test_topv_equals_the_slow_reference(case: Case, after: int, keep: int) -> None:
    """TopV: transport between a layer's inputs and outputs, over tiles, images and newlines."""

    def slow(model: Any, embeds: Tensor, visual: Tensor, length: int) -> SlowResult:
        slots = visual[:length].nonzero()[:, 0]
        found = find_family(model).cells(model, embeds[slots])
        assert found is not None
        cells: list[Any] = [None] * len(embeds)
        for slot, cell in zip(slots.tolist(), found.tolist(), strict=True):
            cells[slot] = tuple(cell) if cell[2] >= 0 else None
        return slow_inside.slow_topv(model, embeds, visual, length, after=after, count=keep, cells=cells)

    check(case, TopV(after=after, counts=(keep,)), slow, ties=False)


@given(case=CASES, after=st.integers(1, LAYERS - 1), keep=st.integers(1, 40), alike=st.sampled_from([0.9, 0.3, -0.1]))
@everywhere(after=3, keep=5, alike=0.3)
@FEWER
def test_greedyprune_equals_the_slow_reference(case: Case, after: int, keep: int, alike: float) -> None:
    """GreedyPrune: with thresholds that bind, and that leave room to fill."""
    method = GreedyPrune(after=after, counts=(keep,), alike=alike)
    slow = slow_inside.slow_greedyprune
    check(case, method, lambda *inputs: slow(*inputs, after=after, count=keep, tau=alike), ties=False)


@given(
    case=CASES,
    after=st.integers(1, LAYERS - 1),
    keep=st.integers(1, 40),
    shares=st.sampled_from([(0.1, 0.01), (0.4, 0.2), (0.0, 0.1)]),
)
@everywhere(after=3, keep=7, shares=(0.4, 0.2))
@FEWER
def test_ivcprune_equals_the_slow_reference(case: Case, after: int, keep: int, shares: tuple[float, float]) -> None:
    """IVC-Prune: coordinates, seeds, foreground, and answers that see the same tokens in every layer."""
    method = IVCPrune(after=after, counts=(keep,), coordinates=shares[0], seeds=shares[1])
    fields = {"after": after, "count": keep, "coordinates": shares[0], "seeds": shares[1]}
    check(case, method, lambda *inputs: slow_inside.slow_ivcprune(*inputs, **fields), ties=False)


def relevance(seen: Seen) -> Tensor:
    """Any one: it depends on the patch."""
    return seen.features.float().sin().sum(1)


def blocks_of(tower: Tower, seed: int) -> list[slow_tower.Block]:
    """Layers that look at something and change it."""
    draw = torch.Generator().manual_seed(seed)
    width = tower.hidden[0].shape[1]

    def layer() -> slow_tower.Block:
        q, k, v, out, mlp = (torch.randn(width, width, generator=draw) / width**0.5 for _ in range(5))

        def heads(matrix: Tensor) -> Any:
            return lambda states: (states @ matrix).view(len(states), 2, -1).transpose(0, 1)

        return slow_tower.Block(
            layer_norm1=lambda states: states / states.norm(dim=1, keepdim=True),
            layer_norm2=lambda states: states / 3,
            q=heads(4 * q),
            k=heads(k),
            v=heads(v),
            out=lambda states: states @ out,
            mlp=lambda states: torch.tanh(states @ mlp),
        )

    return [layer() for _ in range(len(tower.hidden) - 1)]


def engines(block: slow_tower.Block) -> Block:
    """The same layer, as methods see it."""
    return Block(
        heads=lambda which, states: {"q": block.q, "k": block.k, "v": block.v}[which](block.layer_norm1(states)),
        joined=lambda heads: block.out(heads.transpose(0, 1).flatten(1)),
        mlp=lambda states: block.mlp(block.layer_norm2(states)),
    )


@pytest.mark.parametrize(("side", "seed"), [(4, 0), (5, 2), (8, 1)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_tome_equals_the_slow_reference(side, seed, share):
    """Places and features, over five layers that change what they merge."""
    tower, count = random_tower(side, seed), int(share * side * side) + 1
    blocks = blocks_of(tower, seed)
    made = ToMe().reduction.reduce(seen_of(tower, blocks=[engines(block) for block in blocks]), count, 0)
    features, places = slow_tower.slow_tome(tower, blocks, count)
    assert made.stands.tolist() == places
    assert len(places) == count
    torch.testing.assert_close(made.features, features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("side", "seed"), [(2, 0), (5, 1), (8, 2)])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_tiles_of_star_and_cdpruner_equal_the_slow_references(side, seed, count):
    """Kept patches in raster order, unchanged. (Embeddings have 7 channels: more would be a matter of rounding.)"""
    tower = random_tower(side, seed)
    seen = seen_of(tower)
    wanted = {
        Star(): slow_tower.slow_star(tower, count),
        CDPruner(relevance=relevance): slow_tower.slow_cdpruner(tower, relevance(seen), count),
    }
    for method, (features, places) in wanted.items():
        made = method.reduction.reduce(seen, count, 0)
        assert made.stands.tolist() == places
        torch.testing.assert_close(made.features, features, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("side", "seed"), [(4, 0), (6, 1), (8, 2)])
@pytest.mark.parametrize(("count", "clusters"), [(5, 1), (12, 4), (14, 14), (3, 5)])
def test_clusters_equal_the_slow_reference(side, seed, count, clusters):
    """ViTCoP's patches and their labels."""
    tower = random_tower(side, seed)
    made = Clustered("renumbered").reduce(seen_of(tower, clusters=clusters), count, 0)
    features, places, labels = slow_tower.slow_vitcop(tower, count, clusters)
    assert made.stands.tolist() == places
    assert made.labels.tolist() == labels
    torch.testing.assert_close(made.features, features, atol=1e-6, rtol=0)


def hf_blocks(model: nn.Module) -> list[slow_tower.Block]:
    """The layers of a real CLIP tower, part by part."""
    vision = model.model.vision_tower
    vision = getattr(vision, "vision_model", vision)

    def block(layer: Any) -> slow_tower.Block:
        own = layer.self_attn

        def heads(project: nn.Module) -> Any:
            return lambda states: project(states).view(len(states), own.num_heads, -1).transpose(0, 1)

        parts = heads(own.q_proj), heads(own.k_proj), heads(own.v_proj)
        return slow_tower.Block(layer.layer_norm1, layer.layer_norm2, *parts, own.out_proj, layer.mlp)

    return [block(layer) for layer in vision.encoder.layers]


def shortened(model: nn.Module, row: Row, features: Tensor, places: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """The embeddings of a row of one image, fed `features` instead; which are visual; each one's slot in the row."""
    ids = torch.tensor(row.ids)
    first = row.ids.index(IMAGE)
    slots = [*range(first), *(first + place for place in places), *range(first + 16, len(ids))]
    embed = model.get_input_embeddings()
    embeds = torch.cat([embed(ids[:first]), features, embed(ids[first + 16 :])])
    visual = torch.tensor([first <= slot < first + 16 for slot in slots])
    return embeds, visual, slots


CUT_INSIDE: dict[str, Method] = {
    "star": Star(after=(3,), counts=(9, 4)),
    "vitcop": ViTCoP(after=(2, 5), counts=(11, 0, 4, 3, 3)),
    "vitcop, one cluster": ViTCoP(after=(1, 4), counts=(8, 0, 5, 1, 2)),
    "tome": ToMe(counts=(10,)),
}


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", CUT_INSIDE)
def test_two_parts_equal_their_slow_references(name, kv_heads):
    """Before the model and inside it: whom the cuts keep, logits of prefill and eight steps, alone and in a batch."""
    model, method = tiny("llava", kv_heads), CUT_INSIDE[name]
    rows = [make_row(model, 0, text=4), make_row(model, 1, text=9), make_row(model, 2, images=0, text=5)]
    answer = torch.randint(2, IMAGE, (3, STEPS), generator=torch.Generator().manual_seed(5))
    for batch in (rows[:1], rows):
        with swiftvlm.prune(model, method) as trace:
            prefill, later = decode(model, batch_of(model, batch), answer[: len(batch)])
        for index, row in enumerate(batch[:2]):
            slow, slots, length = slow_result(model, method, row, answer[index])
            offset = max(len(other.ids) for other in batch) - len(row.ids)
            for stage, kept in enumerate(slow.kept, 1):
                assert (trace.kept[stage][index] - offset).tolist() == [slots[slot] for slot in kept]
                assert (trace.anchors[stage][index] - offset).tolist() == [slots[s] for s in slow.anchors[stage - 1]]
            found = torch.stack([prefill[index, -1], *(step[index] for step in later)])
            torch.testing.assert_close(found, slow.logits[length - 1 :], atol=CLOSE, rtol=0)


def slow_result(model: nn.Module, method: Method, row: Row, answer: Tensor) -> tuple[SlowResult, list[int], int]:
    """The reference on the shortened prompt and the answer; the slot of each of its tokens; its prompt's length."""
    tower, counts, labels = tower_of(model, row.pixels[0]), method.counts or (), list[int]()
    if isinstance(method, Star):
        features, places = slow_tower.slow_star(tower, counts[0])
    elif isinstance(method, ToMe):
        features, places = slow_tower.slow_tome(tower, hf_blocks(model), counts[0])
    else:
        features, places, labels = slow_tower.slow_vitcop(tower, counts[0], counts[3])
    embeds, visual, slots = shortened(model, row, features, places)
    length = len(slots)
    embeds = torch.cat([embeds, model.get_input_embeddings()(answer)])
    visual = torch.cat([visual, torch.zeros(len(answer), dtype=torch.bool)])
    given = model, embeds, visual, length
    if isinstance(method, Star):
        position = torch.tensor(slots + [len(row.ids) + step for step in range(len(answer))])
        (after,) = method.after or ()
        made = slow_inside.slow_star_cut(*given, after=after, count=counts[1], positions=position)
    elif isinstance(method, ViTCoP) and method.after:
        of = dict(zip(visual.nonzero()[:, 0].tolist(), labels, strict=True))
        first, second = method.after
        fields: dict[str, Any] = {"after": (first, second), "shallow": counts[2] + counts[3], "deep": counts[4]}
        made = slow_inside.slow_vitcop_cuts(*given, labels=of, **fields)
    else:  # nothing is cut inside
        made = slow_inside.slow_greedyprune(*given, after=1, count=99)
        made.kept, made.anchors = [], []
    return made, slots, length
