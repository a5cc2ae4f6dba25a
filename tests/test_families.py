"""What a family knows of its models: where visual tokens are, and which patch of which image each one is."""

import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

import swiftvlm
from swiftvlm.families import FAMILIES, find_family
from tests.support import IMAGE, PATCH, PINPOINTS, SIDE, batch_of, features_of, make_row, tiny

GRID = SIDE // PATCH


def test_both_tables_list_what_they_serve():
    """The registry finds a model's family by its config."""
    assert {name: find_family(tiny(name)).name for name in ("llava", "llava_next")} == {n: n for n in FAMILIES}


def test_llava_cells_are_the_grid_in_raster_order():
    """Image, tile 0, row, column; images are numbered within their row."""
    model = tiny("llava")
    rows = [make_row(model, 0, images=2), make_row(model, 1, images=0), make_row(model, 2)]
    with swiftvlm.prune(model, "fastv", budget=0.9) as trace:
        model(**batch_of(model, rows))
    first, none, last = trace.cells
    assert len(none) == 0
    assert first[:GRID].tolist() == [[0, 0, 0, column] for column in range(GRID)]
    assert first[16:].tolist() == [[1, 0, i // GRID, i % GRID] for i in range(16)]
    assert last.tolist() == [[0, 0, i // GRID, i % GRID] for i in range(16)]


# The last two are a little higher than two tiles side by side: four tiles, of which as many rows are left as of two.
@pytest.mark.parametrize("size", [(40, 56), (20, 56), (56, 20), (56, 56), (28, 56), (30, 56), (56, 30)])
def test_llava_next_cells_follow_the_features(size):
    """Each token's cell names the very tower feature it was made from; newline features have none.

    The tower is replaced by features that carry their own tile, row and column, so the model's packing moves them.
    """
    model = tiny("llava_next")
    row = make_row(model, 3, sizes=[size])
    tiles = len(row.pixels[0])
    mark = torch.stack([torch.arange(tiles).repeat_interleave(16), *_grid(tiles)], dim=1).float().view(tiles, 16, 3)
    packed, _ = model.model.pack_image_features([mark], [list(size)], "default", image_newline=torch.full((3,), -1.0))
    features = model.model.get_image_features(**features_of(model, row), return_dict=True).pooler_output[0]
    seen = _encoded(model, row)
    # Another image's tiles before these and behind them: only those of this image show what it shows.
    others = _encoded(model, make_row(model, 4, sizes=[(40, 56)]))
    cells = FAMILIES["llava_next"].cells(model, features, [*others, *seen, *others])
    assert cells is not None
    high, wide = get_anyres_image_grid_shape(size, PINPOINTS, SIDE)
    # Without having seen a tile: the same, or nothing where it might be two tiles or four.
    alone = FAMILIES["llava_next"].cells(model, features)
    assert (
        alone is None
        if size in ((56, 56), (28, 56), (30, 56), (56, 30)) and alone is None
        else torch.equal(alone, cells)
    )
    assert cells[:, 0].unique().tolist() == [0]
    newline = (cells[:, 1:] == -1).all(1)
    assert torch.equal(cells[~newline, 1:].float(), packed[0][~newline])
    assert (packed[0][newline] == -1).all()
    assert int(newline.sum()) == len(packed[0][16:]) // (_unpadded_width(size, wide, high) + 1)


def _encoded(model, row):
    """First channels of the projected tiles of a row's image."""
    tower = model.model.vision_tower(row.pixels[0], output_hidden_states=True).hidden_states[-2][:, 1:]
    return list(model.model.multi_modal_projector(tower)[..., :5].detach())


def _grid(tiles: int) -> list[torch.Tensor]:
    cell = torch.arange(16).repeat(tiles)
    return [cell // GRID, cell % GRID]


def _unpadded_width(size: tuple[int, int], wide: int, high: int) -> int:
    """Columns left after LLaVA-NeXT unpads a grid of wide x high tiles, by hand."""
    height, width = size
    columns, rows = wide * GRID, high * GRID
    if width / height > columns / rows:
        return columns
    new = int(round(width * (rows / height), 7))
    return columns - 2 * ((columns - new) // 2)


def test_newlines_can_be_pruned():
    """Newline features are visual tokens like any other: counted, scored, dropped."""
    model = tiny("llava_next")
    row = make_row(model, 5)
    with swiftvlm.prune(model, "fastv", budget=0.4) as trace:
        model(**batch_of(model, [row]))
    newline = trace.cells[0][:, 2] == -1
    chosen = torch.isin(trace.candidates[0][0], trace.kept[0][0])
    assert trace.visual == (row.ids.count(IMAGE),)
    assert int((newline & ~chosen).sum()) > 0


def test_cells_are_left_empty_where_features_do_not_add_up():
    """Features given by hand, of no whole number of images, have no cells rather than wrong ones."""
    model = tiny("llava")
    assert FAMILIES["llava"].cells(model, torch.zeros(17, 32)) is None
    assert FAMILIES["llava_next"].cells(tiny("llava_next"), torch.zeros(17, 32)) is None


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_queries_and_keys_are_those_of_the_attention(family, kv_heads):
    """q.k of a family equals the attention map that eager attention reports, row by row."""
    model = tiny(family, kv_heads, "eager")
    batch = batch_of(model, [make_row(model, 7)])
    seen = {}
    layer = model.model.language_model.layers[2]
    hook = layer.register_forward_pre_hook(
        lambda m, a, k: seen.update(h=a[0], r=k["position_embeddings"]), with_kwargs=True
    )
    attentions = model(**batch, output_attentions=True).attentions[2]
    hook.remove()
    known = find_family(model)
    q, k = known.queries(layer, seen["h"], seen["r"]), known.keys(layer, seen["h"], seen["r"])
    logits = q @ k.repeat_interleave(4 // kv_heads, dim=1).transpose(2, 3) * known.scaling(layer)
    causal = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    torch.testing.assert_close(logits.masked_fill(~causal, -torch.inf).softmax(-1), attentions, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_cells_are_known_inside_generate_too(family):
    """generate encodes images before the prefill, so their sizes never reach it; cells are the same all the same."""
    model = tiny(family)
    batch = batch_of(model, [make_row(model, 2, images=2), make_row(model, 3, images=1), make_row(model, 4, images=0)])
    with swiftvlm.prune(model, "fastv", budget=0.5) as trace:
        model(**batch)
        model.generate(**batch, max_new_tokens=1)
    called, generated = trace.runs
    assert [len(cells) for cells in called.cells] == list(called.visual)
    assert all(torch.equal(a, b) for a, b in zip(called.cells, generated.cells, strict=True))
    assert called.cells[0][:, 0].unique().tolist() == [0, 1]
