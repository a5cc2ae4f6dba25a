"""Methods before the language model against their slow references: whom each token stands for, logits, eight steps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.methods.divprune import DivPrune
from swiftvlm.methods.hiprune import HiPrune
from swiftvlm.methods.visionzip import VisionZip
from swiftvlm.methods.vispruner import VisPruner
from tests.reference import slow_prelm as slow
from tests.support import IMAGE, PATCH, SIDE, Row, batch_of, make_row, tiny

STEPS, CLOSE = 8, 1e-5
CASES: dict[str, tuple[Method, Any]] = {
    "visionzip": (VisionZip(counts=(5, 3)), lambda tower: slow.slow_visionzip(tower, 5, 3)),
    "visionzip, one contextual": (VisionZip(counts=(2, 1)), lambda tower: slow.slow_visionzip(tower, 2, 1)),
    "vispruner": (VisPruner(counts=(6,)), lambda tower: slow.slow_vispruner(tower, 6)),
    "vispruner, odd": (VisPruner(counts=(5,), ratio=0.4), lambda tower: slow.slow_vispruner(tower, 5, 0.4)),
    "divprune": (DivPrune(counts=(7,)), lambda tower: divprune(tower, 7)),
    "divprune, one": (DivPrune(counts=(1,)), lambda tower: divprune(tower, 1)),
    "hiprune": (HiPrune(counts=(9,), alpha=0.6), lambda tower: slow.slow_hiprune(tower, 9, 0.6)),
    "hiprune, no anchor": (HiPrune(counts=(4,)), lambda tower: slow.slow_hiprune(tower, 4)),
}


def divprune(tower: slow.Tower, count: int) -> slow.Tokens:
    """With the features that its choice stands for."""
    embeds = tower.project(tower.hidden[-2][1:])
    places = slow.slow_divprune(embeds, count)
    return embeds[places], places


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
