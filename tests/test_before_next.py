"""Methods before the language model, tile by tile and with the cuts that two of them make later, by slow references."""

from dataclasses import replace
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
from swiftvlm.methods.star import Star
from swiftvlm.methods.tome import ToMe
from swiftvlm.methods.visionzip import VisionZip
from swiftvlm.methods.vispruner import VisPruner
from swiftvlm.methods.vitcop import ViTCoP
from swiftvlm.methods.vscan import VScan
from tests.reference import slow_prelm as slow
from tests.reference import slow_tower
from tests.reference.slow_field import slow_pdrop
from tests.reference.slow_inside import slow_star_cut, slow_vitcop_cuts
from tests.reference.slow_methods import SlowResult, slow_vanilla
from tests.reference.slow_tiles import Fed, Place, slow_fed, slow_nuwa_cut, slow_places, slow_shares
from tests.support import IMAGE, PATCH, SIDE, Row, batch_of, make_row, tiny
from tests.test_against_reference import decode
from tests.test_before_reference import CLOSE, STEPS, cdpruner, divprune, plus, tower_of, waves
from tests.test_more_reference import hf_blocks

GRID = SIDE // PATCH
# What becomes of a tile that is granted so many tokens and so many merged ones (for ViTCoP, clusters).
METHODS: dict[str, tuple[Method, Any]] = {
    "visionzip": (VisionZip(counts=(17, 7)), slow.slow_visionzip),
    "vispruner": (VisPruner(counts=(21,)), lambda tower, keep, _: slow.slow_vispruner(tower, keep)),
    "prumerge": (PruMerge(counts=(18,)), lambda tower, keep, _: slow.slow_prumerge(tower, keep - 1)),
    "prumerge+": (PruMergePlus(counts=(23,)), lambda tower, keep, _: plus(tower, keep)),
    "divprune": (DivPrune(counts=(19,)), lambda tower, keep, _: divprune(tower, keep)),
    "hiprune": (HiPrune(counts=(22,), alpha=0.9), lambda tower, keep, _: slow.slow_hiprune(tower, keep, 0.9)),
    "holov": (HoloV(counts=(18,), crops=4), lambda tower, keep, _: slow.slow_holov(tower, keep, crops=4)),
    "cdpruner": (
        CDPruner(counts=(17,), relevance=lambda seen: waves(seen.features)),
        lambda tower, keep, _: cdpruner(tower, keep),
    ),
    "vscan": (VScan(after=(3,), counts=(19, 5)), lambda tower, keep, _: slow.slow_vscan(tower, keep)),
    "nuwa": (Nuwa(after=(3,), counts=(23, 6)), lambda tower, keep, _: slow.slow_nuwa(tower, keep)),
    "star": (Star(after=(3,), counts=(18, 6)), lambda tower, keep, _: slow_tower.slow_star(tower, keep)),
    "vitcop": (ViTCoP(after=(2, 5), counts=(25, 0, 7, 6, 4)), slow_tower.slow_vitcop),
    "tome": (ToMe(counts=(21,)), None),
}
FED_AS_RETURNED = ("visionzip", "prumerge", "prumerge+")
# Four tiles that lack rows; two tiles, one above the other, that lack columns.
SIZES = {(40, 56): 64, (56, 20): 32}


def fed_to(model: nn.Module, name: str, method: Method, row: Row) -> Fed:
    """What the slow references make of the image of a row."""
    places: list[Place] = [(0, patch) for patch in range(GRID * GRID)]
    tiles, newline = row.pixels[0][None], torch.zeros(0)
    if row.sizes:
        places = slow_places(row.sizes[0], model.config.image_grid_pinpoints, SIDE, GRID)
        tiles, newline = row.pixels[0], model.model.image_newline
    here = [[place[1] for place in places if place and place[0] == tile] for tile in range(len(tiles))]
    counts = [*(method.counts or ()), 0, 0, 0]
    merged = {"visionzip": counts[1], "vitcop": counts[3]}.get(name, 0)
    sizes, made, labels = [len(patches) for patches in here], list[Any](), list[list[int]]()
    for pixels, patches, keep, extra in zip(
        tiles, here, slow_shares(counts[0], sizes), slow_shares(merged, sizes), strict=True
    ):
        tower = tower_of(model, pixels)
        tower.here = patches
        if name == "tome":
            made.append(slow_tower.slow_tome(tower, hf_blocks(model), keep))
            continue
        features, chosen, *found = METHODS[name][1](tower, keep, extra)
        made.append((features, chosen))
        labels += found
    total = counts[0] + (merged if name == "visionzip" else 0)
    return slow_fed(places, newline, total, made, labels, name not in FED_AS_RETURNED)


def slow_result(model: nn.Module, method: Method, row: Row, fed: Fed, answer: Tensor) -> tuple[SlowResult, list[int]]:
    """The reference on the shortened prompt and the answer; the slot of each of the prompt's tokens, -1 for none."""
    ids, first, embed = torch.tensor(row.ids), row.ids.index(IMAGE), model.get_input_embeddings()
    behind = first + row.ids.count(IMAGE)
    embeds = torch.cat([embed(ids[:first]), fed.features, embed(ids[behind:]), embed(answer)])
    slots = [first + number if number >= 0 else -1 for number in fed.numbers]
    visual = torch.zeros(len(embeds), dtype=torch.bool)
    visual[first : first + len(slots)] = True
    slots = [*range(first), *slots, *range(behind, len(ids))]
    true = torch.tensor([*slots, *range(len(ids), len(ids) + len(answer))])
    given, counts = (model, embeds, visual, len(slots)), method.counts or ()
    if isinstance(method, VScan):
        made = slow_pdrop(*given, layers=method.after or (), counts=counts[1:])
    elif isinstance(method, Nuwa | Star):
        cut = slow_nuwa_cut if isinstance(method, Nuwa) else slow_star_cut
        made = cut(*given, after=(method.after or ())[0], count=counts[1], positions=true)
    elif isinstance(method, ViTCoP):
        labels = {first + number: label for number, label in enumerate(fed.labels)}
        first_cut, second = method.after or (0, 0)
        fields: dict[str, Any] = {"after": (first_cut, second), "shallow": counts[2] + counts[3], "deep": counts[4]}
        made = slow_vitcop_cuts(*given, labels=labels, **fields)
    else:
        made = slow_vanilla(model, embeds)
    return made, slots


def compare(model: nn.Module, name: str, method: Method, rows: list[Row]) -> None:
    """A left-padded batch against every row by itself: whom tokens stand for, later cuts, logits and eight steps."""
    answer = torch.randint(2, IMAGE, (len(rows), STEPS), generator=torch.Generator().manual_seed(5))
    batch = batch_of(model, rows)
    with torch.no_grad(), swiftvlm.prune(model, method) as trace:
        prefill, later = decode(model, batch, answer)
    for index, row in enumerate(rows):
        if not row.pixels:
            continue
        offset = batch["input_ids"].shape[1] - len(row.ids)
        fed = fed_to(model, name, method, row)
        made, slots = slow_result(model, method, row, fed, answer[index])
        told = torch.cat([trace.kept[0][index], trace.anchors[0][index]]) - offset
        assert sorted(told.tolist()) == sorted(row.ids.index(IMAGE) + number for number in fed.numbers if number >= 0)
        assert len(trace.kept) == 1 + len(made.kept)
        for stage, kept in enumerate(made.kept, 1):
            assert (trace.kept[stage][index] - offset).tolist() == [slots[slot] for slot in kept]
            assert (trace.anchors[stage][index] - offset).tolist() == [slots[s] for s in made.anchors[stage - 1]]
        found = torch.stack([prefill[index, -1], *(step[index] for step in later)])
        torch.testing.assert_close(found, made.logits[len(slots) - 1 :], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", ["vscan", "nuwa"])
def test_a_cut_before_and_one_inside_equal_their_slow_references(name, kv_heads):
    """One tile: alone, and beside a longer prompt and one without an image."""
    model, after = tiny("llava", kv_heads), {"vscan": (3,), "nuwa": (4,)}[name]
    method = replace(METHODS[name][0], after=after, counts=(9, 4))
    rows = [make_row(model, 0, text=4), make_row(model, 1, text=9), make_row(model, 2, images=0, text=5)]
    compare(model, name, method, rows[:1])
    compare(model, name, method, rows)


@pytest.mark.parametrize(("size", "patches"), SIZES.items())
@pytest.mark.parametrize("name", METHODS)
def test_tiles_of_llava_next_equal_the_slow_references(name, size, patches):
    """Each tile by itself and its share of the count; newlines go first. Alone, and beside longer rows and text."""
    model, method = tiny("llava_next", 2), METHODS[name][0]
    if name == "tome":  # a tower of one layer in front of the features halves at best
        method = replace(method, counts=(2 * patches // 3,))
    rows = [make_row(model, 4, sizes=[size]), make_row(model, 7, text=11, sizes=[size]), make_row(model, 8, images=0)]
    compare(model, name, method, rows[:1])
    compare(model, name, method, rows)


def test_rows_of_unlike_tiles_equal_the_slow_references():
    """Four tiles beside two, which stand for other places and have other shares."""
    model = tiny("llava_next", 2)
    rows = [make_row(model, 9 + i, text=5 + 3 * i, sizes=[size]) for i, size in enumerate(SIZES)]
    for name, (method, _) in METHODS.items():
        if name != "tome":  # what the larger can reach leaves the smaller whole
            compare(model, name, method, rows)


@pytest.mark.parametrize("name", ["visionzip", "divprune", "prumerge"])
def test_newlines_stay_where_patches_do_not_suffice(name):
    """34 tokens of 32 patches and 8 newlines: the first two of these are fed, in their places or in front."""
    model = tiny("llava_next", 4)
    method = replace(METHODS[name][0], counts=(30, 4) if name == "visionzip" else (34,))
    compare(model, name, method, [make_row(model, 6, sizes=[(56, 20)])])
