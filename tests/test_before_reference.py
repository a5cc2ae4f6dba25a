"""Methods before the language model against their slow references: whom each token stands for, logits, eight steps."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.methods.cdpruner import CDPruner
from swiftvlm.methods.divprune import DivPrune
from swiftvlm.methods.hiprune import HiPrune
from swiftvlm.methods.holov import HoloV
from swiftvlm.methods.nuwa import Nuwa
from swiftvlm.methods.prumerge import PruMerge, PruMergePlus
from swiftvlm.methods.visionzip import VisionZip
from swiftvlm.methods.vispruner import VisPruner
from swiftvlm.methods.vscan import VScan
from swiftvlm.tower import Block, Seen
from tests.reference import slow_prelm as slow
from tests.reference import slow_tower
from tests.support import IMAGE, PATCH, SIDE, Row, batch_of, make_row, tiny

STEPS, CLOSE = 8, 1e-5


def waves(features: Tensor) -> Tensor:
    """Any relevance of patches (n, channels), as long as it differs."""
    return features.float().cos().sum(1)


RELEVANT = CDPruner(counts=(6,), relevance=lambda seen: waves(seen.features))
CASES: dict[str, tuple[Method, Any]] = {
    "visionzip": (VisionZip(counts=(5, 3)), lambda tower: slow.slow_visionzip(tower, 5, 3)),
    "visionzip, one contextual": (VisionZip(counts=(2, 1)), lambda tower: slow.slow_visionzip(tower, 2, 1)),
    "vispruner": (VisPruner(counts=(6,)), lambda tower: slow.slow_vispruner(tower, 6)),
    "vispruner, odd": (VisPruner(counts=(5,), ratio=0.4), lambda tower: slow.slow_vispruner(tower, 5, 0.4)),
    "divprune": (DivPrune(counts=(7,)), lambda tower: divprune(tower, 7)),
    "divprune, one": (DivPrune(counts=(1,)), lambda tower: divprune(tower, 1)),
    "hiprune": (HiPrune(counts=(9,), alpha=0.6), lambda tower: slow.slow_hiprune(tower, 9, 0.6)),
    "hiprune, no anchor": (HiPrune(counts=(4,)), lambda tower: slow.slow_hiprune(tower, 4)),
    "prumerge": (PruMerge(counts=(6,)), lambda tower: slow.slow_prumerge(tower, 5)),
    "prumerge, adaptive": (PruMerge(counts=(16,), adaptive=True), lambda tower: slow.slow_prumerge(tower, None)),
    "prumerge+": (PruMergePlus(counts=(9,)), lambda tower: plus(tower, 9)),
    "holov": (HoloV(counts=(6,), crops=4), lambda tower: slow.slow_holov(tower, 6, crops=4)),
    "cdpruner": (RELEVANT, lambda tower: cdpruner(tower, 6)),
}


def divprune(tower: slow.Tower, count: int) -> slow.Tokens:
    """With the features that its choice stands for."""
    embeds = tower.project(slow._patches(tower, tower.hidden[-2]))
    places = slow.slow_divprune(embeds, count)
    return embeds[places], places


def cdpruner(tower: slow.Tower, count: int) -> slow.Tokens:
    """With the relevance of this file."""
    return slow_tower.slow_cdpruner(tower, waves(slow._patches(tower, tower.hidden[-2])), count)


def tower_of(model: nn.Module, pixels: Tensor) -> slow.Tower:
    """What the reference looks at, for one tile (3, side, side): read by calling the tower's parts one by one."""
    vision = model.model.vision_tower
    vision = getattr(vision, "vision_model", vision)
    state = vision.pre_layrnorm(vision.embeddings(pixels[None]))
    hidden, queries, keys = [state[0]], [], []
    for layer in vision.encoder.layers:
        normed, attention = layer.layer_norm1(state), layer.self_attn
        for kept, project in ((queries, attention.q_proj), (keys, attention.k_proj)):
            kept.append(project(normed)[0].view(state.shape[1], attention.num_heads, -1).transpose(0, 1))
        out = layer(state, attention_mask=None)
        state = out if isinstance(out, Tensor) else out[0]
        hidden.append(state[0])
    return slow.Tower(hidden, queries, keys, SIDE // PATCH, model.model.multi_modal_projector)


def expected(
    model: nn.Module, row: Row, tiles: list[Tensor], reference: Any, answer: Tensor, whole: bool
) -> tuple[Tensor, list[int]]:
    """Logits of the answer's tokens behind the shortened prompt, and the slots of the patches that are fed."""
    embed = model.get_input_embeddings()
    vectors, slots, fed, left = [], [], [], list(tiles)
    ids, number = torch.tensor(row.ids), 0
    while number < len(ids):
        if ids[number] != IMAGE:
            vectors.append(embed(ids[number : number + 1]))
            slots.append(number)
            number += 1
            continue
        tower = tower_of(model, left.pop(0))
        features, places = reference(tower)
        vectors.append(features)
        slots += [number + place for place in places]
        fed += [number + place for place in places if place >= 0]
        number += tower.side**2
    vectors.append(embed(answer))
    # Numbered afresh, or by the patch that each stands for.
    positions = torch.tensor(slots + [len(ids) + i for i in range(len(answer))])[None] if whole else None
    states = model.model.language_model(inputs_embeds=torch.cat(vectors)[None], position_ids=positions)
    return model.lm_head(states.last_hidden_state)[0, -len(answer) - 1 :], fed


def check(model: nn.Module, method: Method, reference: Any, rows: list[Row], whole: bool = False) -> swiftvlm.Trace:
    """A left-padded batch, prefilled and continued token by token, against every row by itself."""
    batch = batch_of(model, rows)
    answer = torch.randint(2, IMAGE, (len(rows), STEPS), generator=torch.Generator().manual_seed(3))
    with swiftvlm.prune(model, method) as trace:
        out = model(**batch)
        logits, mask = [out.logits[:, -1]], batch["attention_mask"]
        for token in answer.T:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            step = model(input_ids=token[:, None], attention_mask=mask, past_key_values=out.past_key_values)
            logits.append(step.logits[:, -1])
    length = batch["input_ids"].shape[1]
    for index, row in enumerate(rows):
        found, fed = expected(model, row, list(row.pixels), reference, answer[index], whole)
        torch.testing.assert_close(torch.stack(logits)[:, index], found, atol=CLOSE, rtol=0)
        told = torch.cat([trace.kept[0][index], trace.anchors[0][index]]) - (length - len(row.ids))
        assert sorted(told.tolist()) == sorted(fed)
    layers = {layer.keys.shape[-2] for layer in out.past_key_values.layers}
    assert len(layers) == 1
    return trace


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", CASES)
def test_one_image_equals_the_slow_reference(name, kv_heads):
    """Alone, and beside a longer prompt and one without an image."""
    model, (method, reference) = tiny("llava", kv_heads), CASES[name]
    rows = [
        make_row(model, 0, images=1, text=4),
        make_row(model, 1, images=1, text=9),
        make_row(model, 2, images=0, text=5),
    ]
    check(model, method, reference, rows[:1])
    check(model, method, reference, rows)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_true_positions_equal_the_slow_reference(kv_heads):
    """Where tokens are not numbered afresh, each one turns by the slot of the patch it stands for."""
    model = tiny("llava", kv_heads)
    rows = [make_row(model, 0, text=4), make_row(model, 1, text=9), make_row(model, 2, images=0, text=5)]
    method = VisPruner(counts=(6,), positions="original")
    for batch in (rows[:1], rows):
        check(model, method, lambda tower: slow.slow_vispruner(tower, 6), batch, whole=True)


def random_tower(side: int, seed: int) -> slow.Tower:
    """Six layers of two heads that look at something."""
    draw = torch.Generator().manual_seed(seed)
    tokens, layers, heads = side * side + 1, 6, 2
    hidden = [torch.randn(tokens, 10, generator=draw) for _ in range(layers + 1)]
    queries, keys = ([2 * torch.randn(heads, tokens, 5, generator=draw) for _ in range(layers)] for _ in range(2))
    matrix = torch.randn(10, 7, generator=draw)
    return slow.Tower(hidden, queries, keys, side, lambda states: torch.tanh(states @ matrix))


def seen_of(tower: slow.Tower, blocks: Sequence[Block] = (), clusters: int = 0) -> Seen:
    """The same, as methods see it."""
    features = tower.hidden[-2][1:]
    return Seen(
        torch.arange(tower.side**2),
        tower.side,
        features,
        tower.project(features),
        len(tower.q),
        len(tower.q) - 1,
        tower.project,
        states=lambda index: tower.hidden[index],
        queries=lambda index: tower.q[index],
        keys=lambda index: tower.k[index],
        block=lambda index: blocks[index],
        clusters=clusters,
    )


def plus(tower: slow.Tower, total: int) -> slow.Tokens:
    """PruMerge+ with the most outstanding patches that leave room for their grid, filled up with the next best."""
    received = slow.prumerge_scores(tower)
    ranked = sorted(range(len(received)), key=lambda patch: (-float(received[patch]), patch))
    kept = ranked[: total - 1]
    for count in range(total - 1, 0, -1):
        places = slow.slow_prumerge_plus(tower, count)[1][:-1]
        if len(places) < total:
            kept = places + [patch for patch in ranked if patch not in places][: total - 1 - len(places)]
            break
    return slow._prumerge_tokens(tower, received, kept)


TILES: dict[str, tuple[Any, Any]] = {
    "visionzip": (VisionZip(), lambda tower, count: slow.slow_visionzip(tower, count, 0)),
    "vispruner": (VisPruner(ratio=0.3), lambda tower, count: slow.slow_vispruner(tower, count, 0.3)),
    "prumerge": (PruMerge(), lambda tower, count: slow.slow_prumerge(tower, count - 1)),
    "adaptive": (PruMerge(adaptive=True), lambda tower, count: slow.slow_prumerge(tower, None)),
    "adaptive+": (PruMergePlus(adaptive=True), lambda tower, count: slow.slow_prumerge_plus(tower, None)),
    "prumerge+": (PruMergePlus(), plus),
    "divprune": (DivPrune(), divprune),
    "hiprune": (HiPrune(alpha=0.4), lambda tower, count: slow.slow_hiprune(tower, count, 0.4)),
    "holov": (HoloV(crops=5), lambda tower, count: slow.slow_holov(tower, count, crops=5)),
    "vscan": (VScan(), slow.slow_vscan),
    "nuwa": (Nuwa(), slow.slow_nuwa),
}


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize(("side", "seed"), [(4, 0), (8, 1)])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_tile_equals_the_slow_reference(name, side, seed, share):
    """Whom the tokens stand for, in the order in which they are fed, and the tokens themselves."""
    method, reference = TILES[name]
    tower, count = random_tower(side, seed), int(share * side * side) + 1
    made = method.reduction.reduce(seen_of(tower), side * side + 1 if name.startswith("adaptive") else count, 0)
    features, places = reference(tower, count)
    assert made.stands.tolist() == places
    torch.testing.assert_close(made.features, features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("contextual", [1, 4, 9])
def test_contextual_tokens_equal_the_slow_reference(contextual):
    """VisionZip's merged tokens, and which patch went into which."""
    tower = random_tower(8, 5)
    made = VisionZip().reduction.reduce(seen_of(tower), 12, contextual)
    features, places = slow.slow_visionzip(tower, 12, contextual)
    assert made.stands.tolist() == places
    torch.testing.assert_close(made.features, features, atol=1e-4, rtol=1e-4)
    assert made.merged == contextual == int(made.groups.max()) + 1
    assert int((made.groups >= 0).sum()) == 64 - 11
