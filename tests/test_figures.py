"""The numbers behind the figures: who was kept, who waits, who speaks for whom, and in which patch it is drawn."""

import io
import json
from itertools import combinations

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

import swiftvlm
from swiftvlm.cli.app import main
from swiftvlm.errors import TraceError
from swiftvlm.families.base import grid_cells
from swiftvlm.figures.accuracy import draw_accuracy
from swiftvlm.figures.fates import Fate, anchors_of, fates
from swiftvlm.figures.layout import Panel, layout_of
from swiftvlm.figures.patches import GROUPS, draw_patches
from swiftvlm.figures.profile import draw_profile
from swiftvlm.figures.river import draw_river
from swiftvlm.figures.schematic import draw_schematic
from swiftvlm.shape import LLAVA_1_5_7B
from swiftvlm.trace import Run
from tests.support import PINPOINTS, SIDE, batch_of, make_row, tiny

COUNTS = (6, 3, 5, 2, 4)
WHOLE = Image.new("RGB", (112, 112), "teal")


def made(*stages, cells=(), visual=6) -> Run:
    """A run of one row by hand; a stage is (candidates, kept, anchors, groups). Layers: one between two stages."""
    columns = [tuple((torch.tensor(part, dtype=torch.long),) for part in parts) for parts in zip(*stages, strict=True)]
    candidates, kept, anchors, groups = columns
    after = tuple(range(2, 2 + len(stages)))
    return Run(
        "made", (visual,), (3,), ((visual,) * 7,), after, kept, anchors, candidates, groups, cells, 0, 0, 0, 0, 0
    )


BYPASS = made(
    ([2, 3, 4, 5, 6, 7], [3, 6], [2, 5], [0, -1, 0, 1, -1, 1]),
    ([2, 3, 4, 5, 6, 7], [4, 7], [], [-1] * 6),
    cells=(grid_cells(0, 0, 2, 3),),
)
MERGE = made(
    ([2, 3, 4, 5, 6, 7], [3, 6], [2, 5], [0, -1, 0, 1, -1, 1]),
    ([2, 3, 5, 6], [5], [2], [0, 0, -1, 0]),
    ([2, 5], [2], [], [-1, -1]),
)


def ran(model, rows, method=None, budget=None) -> Run:
    """One prefill of a tiny model under SwiftVLM or another method."""
    method = method or swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=COUNTS)
    with swiftvlm.prune(model, method, budget=budget) as trace:
        model(**batch_of(model, rows))
    return trace.last


def titles(figure: Figure) -> list[str]:
    """Left titles of all axes, lines joined."""
    return [axes.get_title("left").replace("\n", " ") for axes in figure.axes]


def kinds(story) -> str:
    """First letters of the kinds in slot order."""
    return "".join(fate.kind[0] for _, fate in sorted(story.items()))


def test_fates_of_a_bypass():
    """Members wait and speak through their anchor; at the next stage everybody stands for itself again."""
    first, last = fates(BYPASS, 0)
    assert first == {
        2: Fate("bypassed", 2),
        3: Fate("kept", 3),
        4: Fate("bypassed", 2),
        5: Fate("bypassed", 5),
        6: Fate("kept", 6),
        7: Fate("bypassed", 5),
    }
    assert {slot for slot, fate in last.items() if fate == Fate("kept", slot)} == {4, 7}
    assert {slot for slot, fate in last.items() if fate == Fate("dropped", None)} == {2, 3, 5, 6}
    assert (anchors_of(first), anchors_of(last)) == ([2, 5], [])


def test_fates_of_a_merge_follow_the_merged_token():
    """Absorbed tokens share what becomes of the token they are in: kept, merged once more, or dropped."""
    first, second, last = fates(MERGE, 0)
    assert kinds(first) == "akaaka"
    assert second == {
        2: Fate("absorbed", 2),
        3: Fate("absorbed", 2),
        4: Fate("absorbed", 2),
        5: Fate("kept", 5),
        6: Fate("absorbed", 2),
        7: Fate("absorbed", 5),
    }
    assert last == {slot: Fate("absorbed", 2) for slot in (3, 4, 6)} | {
        2: Fate("kept", 2),
        5: Fate("dropped", None),
        7: Fate("dropped", None),
    }
    assert [anchors_of(story) for story in (first, second, last)] == [[2, 5], [2], []]


def test_a_bypass_without_merged_tokens_has_no_speaker():
    """Z = 0: tokens wait, nothing stands for them."""
    run = made(([2, 3, 4], [3], [], [-1] * 3), ([2, 3, 4], [2], [], [-1] * 3), visual=3)
    assert fates(run, 0)[0] == {2: Fate("bypassed", None), 3: Fate("kept", 3), 4: Fate("bypassed", None)}


def test_dropped_tokens_stay_dropped():
    """A token that is no candidate any more keeps being told."""
    run = made(([2, 3, 4], [2, 3], [], [-1] * 3), ([2, 3], [3], [], [-1] * 2), visual=3)
    assert [kinds(story) for story in fates(run, 0)] == ["kkd", "dkd"]


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("rest", ["bypass", "merge", "drop", ("bypass", "merge"), ("merge", "bypass")])
def test_fates_add_up_to_the_run(family, rest):
    """In every row and stage: the tokens that go on are kept or anchors; all speakers are; nobody is forgotten."""
    model = tiny(family)
    rows = [make_row(model, 0), make_row(model, 1, images=2), make_row(model, 2, images=0)]
    counts = (6, 0, 5, 0, 4) if rest == "drop" else COUNTS
    run = ran(model, rows, swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=counts, rest=rest))
    for row, visual in enumerate(run.visual):
        for number, (after, story) in enumerate(zip(run.after, fates(run, row), strict=True)):
            kept = [slot for slot, fate in story.items() if fate.kind == "kept"]
            going = set(kept + anchors_of(story))
            assert len(story) == visual
            assert kept == run.kept[number][row].tolist()
            assert len(going) == run.per_row[row][after]
            assert {fate.speaker for fate in story.values()} - {None} <= going
    expected = {"bypass": "bypassed", "merge": "absorbed", "drop": "dropped"}
    for number, fate in enumerate((rest, rest) if isinstance(rest, str) else rest):
        found = {told.kind for told in fates(run, 0)[number].values()}
        assert expected[fate] in found
        assert ("bypassed" in found) == (fate == "bypass")


def test_fates_know_their_rows():
    """Rows outside the run are named with those inside; a run without stages has no fates."""
    with pytest.raises(TraceError, match="row 1 is not in this run: it has rows 0 to 0"):
        fates(BYPASS, 1)
    with pytest.raises(TraceError, match="row -1"):
        fates(BYPASS, -1)
    assert fates(ran(tiny(), [make_row(tiny(), 0)], "vanilla"), 0) == []


@pytest.mark.parametrize("size", [(40, 56), (20, 56), (56, 20), (56, 56), (28, 56), (100, 30), (10, 56)])
def test_layout_finds_the_grid_of_tiles(size):
    """As transformers lays them out; every token with a cell is placed once, newlines nowhere, raster order holds."""
    model = tiny("llava_next")
    cells = ran(model, [make_row(model, 3, sizes=[size])]).cells[0]
    thumbnail, tiles = layout_of(cells)
    down, across = get_anyres_image_grid_shape(size, PINPOINTS, SIDE)
    assert (thumbnail.name, thumbnail.rows, thumbnail.columns) == ("thumbnail", 4, 4)
    assert (tiles.name, tiles.rows, tiles.columns) == ("tiles", 4 * down, 4 * across)
    assert torch.equal(thumbnail.holds() | tiles.holds(), cells[:, 2] >= 0)
    assert thumbnail.holds().tolist() == [True] * 16 + [False] * (len(cells) - 16)
    raster = [row * tiles.columns + column for row, column in tiles.place[tiles.holds()].tolist()]
    assert raster == sorted(set(raster))
    left, top, right, bottom = tiles.bounds()
    assert len(raster) == (right - left) * (bottom - top)
    assert (left, top) == (tiles.columns - right, tiles.rows - bottom)
    assert layout_of(cells, (down, across))[1].place.tolist() == tiles.place.tolist()


def test_layout_of_one_grid():
    """One panel, the cells themselves."""
    (panel,) = layout_of(grid_cells(0, 0, 2, 3))
    assert (panel.name, panel.rows, panel.columns, panel.fitted) == ("picture", 2, 3, False)
    assert panel.place.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert panel.bounds() == (0, 0, 3, 2)


def test_layout_says_when_it_cannot_tell():
    """Tiles that padding swallowed, too small a grid, and cells without any tile 0."""
    thumbnail, middle = grid_cells(0, 0, 2, 2), grid_cells(0, 2, 2, 2)
    swallowed = torch.cat([thumbnail, middle])
    with pytest.raises(TraceError, match=r"2 tiles whose first row .* tiles 2 to 2: .* pass tile_grid="):
        layout_of(swallowed)
    assert layout_of(swallowed, (1, 3))[1].place[4:].tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    with pytest.raises(TraceError, match=r"tile_grid=\(1, 1\) \(rows, columns\) has no room for this image's 2 tiles"):
        layout_of(swallowed, (1, 1))
    uneven = torch.cat([thumbnail, torch.tensor([[0, 1, 0, 0], [0, 2, 0, 0], [0, -1, -1, -1], [0, 3, 0, 0]])])
    with pytest.raises(TraceError, match="3 tiles whose first row of patches runs through tiles 1 to 2"):
        layout_of(uneven)
    with pytest.raises(TraceError, match="none of the 4 cells lies in tile 0"):
        layout_of(middle)


def test_frame_keeps_proportions_only_where_the_model_does():
    """A thumbnail squashes the picture; tiles hold it centred at its own shape."""
    nowhere = torch.zeros(0, 2, dtype=torch.long)
    assert Panel("picture", 4, 4, nowhere).frame(56, 28) == (0, 0, 4, 4)
    assert Panel("tiles", 8, 8, nowhere, fitted=True).frame(56, 28) == (0, 2, 8, 6)
    assert Panel("tiles", 8, 8, nowhere, fitted=True).frame(28, 56) == (2, 0, 6, 8)
    assert Panel("tiles", 4, 8, nowhere).bounds() == (0, 0, 8, 4)


def test_draw_patches_titles_and_legend_count():
    """One panel for the picture, one a stage; kinds with their counts stage by stage."""
    figure = draw_patches(Image.new("RGB", (90, 60)), BYPASS, title="a sign")
    assert titles(figure) == [
        "picture: 6 visual tokens",
        "after layer 2: 2 kept, 2 merged, 4 bypassed",
        "after layer 3: 2 kept, 4 dropped",
    ]
    assert figure.get_suptitle() == "a sign"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "kept: the picture as it is (2, 2)",
        "merged token, in its anchor's place (2, 0)",
        "bypassed: waits, comes back (4, 0)",
        "dropped for good (0, 4)",
    ]


def test_draw_patches_covers_the_right_patches():
    """Kept patches stay bare, members of a group share a veil, anchors stand in their own patch in full colour."""
    first, last = draw_patches(Image.new("RGB", (90, 60)), BYPASS).axes[1:]
    veil = first.images[1].get_array()
    assert (veil[..., 3] > 0).tolist() == [[True, False, True], [True, False, True]]
    assert veil[0, 0].tolist() == veil[0, 2].tolist() != veil[1, 0].tolist() == veil[1, 2].tolist()
    anchors = [(round(patch.get_x()), round(patch.get_y())) for patch in first.patches]
    assert anchors == [(0, 0), (0, 1)]
    assert len({patch.get_facecolor() for patch in first.patches}) == 2
    assert (last.images[1].get_array()[..., 3] > 0).tolist() == [[True, True, False], [True, True, False]]
    assert not last.patches


def test_draw_patches_tells_merging_apart():
    """Absorbed tokens are counted as such and hatched."""
    run = made(*_stages(MERGE), cells=(grid_cells(0, 0, 2, 3),))
    figure = draw_patches(Image.new("RGB", (90, 60)), run)
    assert titles(figure)[1:] == [
        "after layer 2: 2 kept, 2 merged, 4 absorbed",
        "after layer 3: 1 kept, 1 merged, 5 absorbed",
        "after layer 4: 1 kept, 3 absorbed, 2 dropped",
    ]
    strokes = [len(axes.collections[0].get_segments()) for axes in figure.axes[1:]]
    assert strokes == [4, 5, 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()][2:] == [
        "absorbed by a merged token, no return (4, 5, 3)",
        "dropped for good (0, 0, 2)",
    ]


def _stages(run):
    parts = (run.candidates, run.kept, run.anchors, run.groups)
    return list(zip(*[[stage[0].tolist() for stage in part] for part in parts], strict=True))


def test_draw_patches_of_llava_next():
    """Thumbnail and tiles a stage; all tokens are in one of the captions, newlines in the last one."""
    model = tiny("llava_next")
    run = ran(model, [make_row(model, 3, sizes=[(40, 56)])])
    figure = draw_patches(Image.new("RGB", (56, 40)), run)
    assert len(figure.axes) == 8
    newline = run.cells[0][:, 2] == -1
    slots = run.candidates[0][0]
    for stage, (thumbnail, tiles) in enumerate(zip(titles(figure)[1:4], titles(figure)[5:], strict=True)):
        kept = torch.isin(slots, run.kept[stage][0])
        assert thumbnail.startswith(f"after layer {run.after[stage]}: {int(kept[:16].sum())} kept")
        patches, extra = tiles.split(" + newlines: ")
        assert f": {int((kept & ~newline)[16:].sum())} kept" in patches
        assert extra.startswith(f"{int((kept & newline).sum())} kept")
    assert titles(figure)[::4] == ["thumbnail: 16 visual tokens", "tiles: 48 visual tokens"]


def test_draw_patches_of_one_image_among_several():
    """Each image's figure counts its own tokens; together they are the row's."""
    model = tiny()
    rows = [make_row(model, 0), make_row(model, 1, images=2)]
    run = ran(model, rows)
    counts = []
    for index in range(2):
        figure = draw_patches(WHOLE, run, row=1, image_index=index)
        mine = run.candidates[0][1][run.cells[1][:, 0] == index]
        expected = [int(torch.isin(mine, stage[1]).sum()) for stage in run.kept]
        assert [int(title.split()[3]) for title in titles(figure)[1:]] == expected
        counts.append(expected)
    assert [sum(pair) for pair in zip(*counts, strict=True)] == [len(stage[1]) for stage in run.kept]


def test_draw_patches_without_stages():
    """Vanilla, or within the budget: the picture and a note."""
    model = tiny()
    for method, budget in (("vanilla", None), ("fastv", 100)):
        figure = draw_patches(WHOLE, ran(model, [make_row(model, 0)], method, budget))
        assert titles(figure) == ["no stage ran: all 16 tokens in every layer"]


def test_boxes_lie_where_the_picture_does():
    """Fractions of the picture become patches, in every panel; under padding for tiles that keep proportions."""
    figure = draw_patches(Image.new("RGB", (90, 60)), BYPASS, boxes=[(0, 0.5, 1 / 3, 1)])
    for axes in figure.axes:
        box = axes.patches[0]
        assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (0, 1, 1, 1)
    model = tiny("llava_next")
    run = ran(model, [make_row(model, 3, sizes=[(28, 56)])])
    box = draw_patches(Image.new("RGB", (56, 28)), run, boxes=[(0.5, 0.0, 1.0, 0.5)]).axes[4].patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (4, 0, 4, 2)


@pytest.mark.parametrize("box", [(0.2, 0.2, 0.1, 0.4), (0.0, 0.0, 1.0), (0.0, 0.0, 3.0, 1.0)])
def test_draw_patches_refuses_boxes(box):
    """Turned around, too short, in pixels."""
    with pytest.raises(TraceError, match=r"in fractions of the picture; got \(0\.\d, "):
        draw_patches(WHOLE, BYPASS, boxes=[box])


def test_draw_patches_refuses_what_it_cannot_place():
    """No such image, no such row, no cells, another shape."""
    picture = Image.new("RGB", (90, 60))
    with pytest.raises(TraceError, match="row 0 has no image 1: it has images 0 to 0"):
        draw_patches(picture, BYPASS, image_index=1)
    with pytest.raises(TraceError, match="row 0 has no image -1"):
        draw_patches(picture, BYPASS, image_index=-1)
    with pytest.raises(TraceError, match="row 7 is not in this run"):
        draw_patches(picture, BYPASS, row=7)
    with pytest.raises(TraceError, match="row 0 has 6 visual tokens and 0 cells, so their places are unknown"):
        draw_patches(picture, MERGE)
    with pytest.raises(TraceError, match="the picture is 112 x 112 and its patches are 3 x 2: pass what the tower saw"):
        draw_patches(WHOLE, BYPASS)
    model = tiny()
    run = ran(model, [make_row(model, 0), make_row(model, 2, images=0)])
    with pytest.raises(TraceError, match="row 1 has 0 visual tokens and 0 cells"):
        draw_patches(WHOLE, run, row=1)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_figures_can_be_saved(form):
    """As pixels and as vectors, without a display."""
    figures = draw_patches(Image.new("L", (90, 60)), BYPASS, boxes=[(0.1, 0.1, 0.5, 0.5)]), draw_schematic()
    for figure in figures:
        file = io.BytesIO()
        figure.savefig(file, format=form)
        assert (b"\x89PNG" if form == "png" else b"<svg") in file.getvalue()[:600]


def test_draw_schematic_is_readable():
    """No text comes near the edge or lies on another; every step is named; colours are those of the patches."""
    figure = draw_schematic()
    (axes,), margin = figure.axes, 10
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text() != "Δ"}
    for words, box in boxes.items():
        assert margin <= box.x0 < box.x1 <= figure.bbox.width - margin, words
        assert margin <= box.y0 < box.y1 <= figure.bbox.height - margin, words
    for (one, first), (other, second) in combinations(boxes.items(), 2):
        assert not first.overlaps(second), f"{one!r} lies on {other!r}"
    steps = [words.split()[-1] for words in boxes if words[:1].isdigit()]
    assert steps == ["select", "group", "merge", "offset", "restore", "re-rank", "select"]
    filled = {patch.get_facecolor() for patch in axes.patches}
    assert {to_rgba(colour) for colour in GROUPS[:2]} <= filled


def test_profile_and_river_show_their_numbers(tmp_path):
    """The chosen layers are marked on the profile; a river's bands are as wide as the plan says."""
    facts = {
        "relative": [0.2, 0.3, 0.5, 0.4, 0.9],
        "errors": [0.1] * 5,
        "y": [0.3, 0.3, 0.5, 0.5, 0.9],
        "layers": [3, 5],
        "tasks": {"ref": {"vanilla": 0.5, "accuracy": [0.1, 0.1, 0.2, 0.2, 0.5]}, "text": {"vanilla": 0.0}},
    }
    axes = draw_profile(facts).axes[0]
    assert [text.get_text() for text in axes.texts] == ["3", "5"]
    assert {line.get_label() for line in axes.lines} >= {"ref", "y(t) of the chosen"}
    made = {name: swiftvlm.plan(name, 192, LLAVA_1_5_7B, 576) for name in ("fastv", "swiftvlm")}
    panels = draw_river(made).axes
    for axes, (name, one) in zip(panels, made.items(), strict=True):
        band = axes.collections[0].get_paths()[0].get_extents()
        assert (band.ymax - band.ymin, band.xmax) == (576, 32)
        assert [text.get_text() for text in axes.texts] == [str(cut.total) for cut in one.cuts]
        assert axes.get_title(loc="left").startswith(f"{name}: 191.")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["foo"],
            "no figure is called 'foo'; there are accuracy, cost, profile, ranking, overlap, changes",
        ),
        (["profile"], "give --data, the result file of swiftvlm profile"),
        (["profile", "--data", "none.json"], "none.json is no result file of swiftvlm profile"),
        (["river", "--into", "nowhere"], "--into nowhere: there is no such folder"),
    ],
)
def test_figure_mistakes_are_told(arguments, says, capsys):
    """One line, exit code 2."""
    assert main(["figure", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_many_methods_are_told_apart():
    """Thirty lines, none left out, no two alike."""
    record = {"task": "ref", "tokens": 128.0, "accuracy": 0.5, "error": 0.02}
    figure = draw_accuracy([record | {"cell": f"m{number}@128"} for number in range(30)])
    lines = [
        line for line in figure.axes[0].lines if line.get_label().startswith("_child") or line.get_marker() in "osD"
    ]
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(looks) == 30


def test_some_methods_of_a_file(tmp_path, capsys):
    """Chosen ones and vanilla are drawn; others are named with what there is."""
    record = {"task": "ref", "tokens": 128.0, "accuracy": 0.5, "error": 0.02}
    summary = [record | {"cell": cell} for cell in ("vanilla", "fastv@128", "pdrop@128")]
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"summary": summary, "rows": []}))
    told = ["figure", "accuracy", "--data", str(file), "--into", str(tmp_path), "--methods"]
    assert main([*told, "pdrop"]) == 0
    drawn = (tmp_path / "accuracy.svg").read_text()
    assert "<!-- pdrop -->" in drawn
    assert "<!-- fastv -->" not in drawn
    capsys.readouterr()
    assert main([*told, "pdrop,dart"]) == 2
    assert "--methods dart: not in this file, which has vanilla, fastv, pdrop" in capsys.readouterr().err


def test_figures_are_the_same_every_time(tmp_path, capsys):
    """PNG and SVG of the command, twice the same bytes."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert main(["figure", "river", "--into", str(tmp_path / folder)]) == 0
    for name in ("river.png", "river.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
