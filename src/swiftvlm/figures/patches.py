"""One run on its own picture: every patch shown as it is, tinted or dimmed by what became of it.

The engine reports slots of the prompt, a family reports cells of the picture; both list a row's visual tokens in the
same order, which is all that ties them together here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL.Image import Image
from torch import Tensor

from swiftvlm.amounts import Number
from swiftvlm.errors import TraceError
from swiftvlm.figures.fates import Fate, Kind, Story, anchors_of, fates
from swiftvlm.figures.layout import Panel, layout_of
from swiftvlm.trace import Run

# Okabe and Ito's colours, which stay apart for colour-blind readers. With many groups they repeat: kinds are told apart
# by brightness, frames and hatching, never by hue alone.
GROUPS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
GONE, WAITING = "#20242C", "#8C929C"
TINT, DIM = 0.68, 0.88  # how much of a patch its group's shade, or the dark, covers
SHADE = 0.5  # of a group's colour in its shade, the rest is dark: members are half dimmed, their anchor shines
PANEL, WIDTH = 3.4, 46  # inches, and letters that fit above them
MEANING: Mapping[Kind, str] = {
    "kept": "kept: the picture as it is",
    "bypassed": "bypassed: waits, comes back",
    "absorbed": "absorbed by a merged token, no return",
    "dropped": "dropped for good",
}


def draw_patches(
    image: Image,
    run: Run,
    *,
    row: int = 0,
    image_index: int = 0,
    boxes: Sequence[Sequence[Number]] = (),
    title: str = "",
    tile_grid: tuple[int, int] | None = None,
) -> Figure:
    """The picture, then the picture with its patches after every stage of the run.

    `image`: what the tower saw, padded or cropped as the processor did; for anyres models the original picture.
    `boxes`: (x1, y1, x2, y2), fractions of `image`. `row`, `image_index`: which prompt, and which of its images.
    `tile_grid` as in `layout_of`. Raises `TraceError` for a row, image, box or shape that does not fit the run.
    """
    _check_boxes(boxes)
    whole = fates(run, row)
    if not whole:
        # No token has a place: the grid is one of pixels.
        plain = Panel("picture", image.height, image.width, torch.zeros(0, 2, dtype=torch.long))
        figure, grid = _figure((plain,), 1, title)
        _picture(grid[0][0], image, plain, boxes, f"no stage ran: all {run.visual[row]} tokens\nin every layer")
        return figure
    slots, cells = _tokens(run, row, image_index)
    panels = layout_of(cells, tile_grid)
    _check_shape(image, panels)
    # This image's tokens only, in the order of its cells, which places and fates are paired by.
    stories = [{slot: story[slot] for slot in slots} for story in whole]
    figure, grid = _figure(panels, 1 + len(stories), title)
    for panel, line in zip(panels, grid, strict=True):
        _picture(line[0], image, panel, boxes, f"{panel.name}:\n{int(panel.holds().sum())} visual tokens")
    for column, (after, story) in enumerate(zip(run.after, stories, strict=True), start=1):
        for panel, line, counts in zip(panels, grid, _captions(panels, story), strict=True):
            _picture(line[column], image, panel, boxes, f"after layer {after}:\n{counts}")
            _veil(line[column], panel, story)
    figure.legend(handles=_legend(stories), loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def _check_boxes(boxes: Sequence[Sequence[Number]]) -> None:
    for box in boxes:
        if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise TraceError(
                f"a box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2, in fractions of the picture; got {tuple(box)}"
            )


def _tokens(run: Run, row: int, image_index: int) -> tuple[list[int], Int[Tensor, "visual 4"]]:
    """Slots and cells of one image's tokens, in order. Raises `TraceError` where the run does not place them."""
    slots = run.candidates[0][row].tolist()
    cells = run.cells[row] if run.cells else torch.zeros(0, 4, dtype=torch.long)
    if len(cells) != len(slots) or not slots:
        raise TraceError(
            f"row {row} has {len(slots)} visual tokens and {len(cells)} cells, so their places are unknown: a "
            "text-only row, a family without `cells`, features given by hand, or a prompt that ends in its image"
        )
    images = int(cells[:, 0].max()) + 1
    if not 0 <= image_index < images:
        raise TraceError(f"row {row} has no image {image_index}: it has images 0 to {images - 1}")
    mine = (cells[:, 0] == image_index).nonzero()[:, 0].tolist()
    return [slots[index] for index in mine], cells[mine]


def _check_shape(image: Image, panels: tuple[Panel, ...]) -> None:
    """A lone grid is the picture itself: another shape would put every patch in the wrong place."""
    grid = panels[0]
    if len(panels) == 1 and abs(image.width * grid.rows / (image.height * grid.columns) - 1) > 0.02:
        raise TraceError(
            f"the picture is {image.width} x {image.height} and its patches are {grid.columns} x {grid.rows}: pass "
            "what the tower saw, resized, padded or cropped as the processor does"
        )


def _captions(panels: tuple[Panel, ...], story: Story) -> list[str]:
    """Counts of each panel's tokens; the last panel names those without a place, too."""
    told = [fill(_counts(_part(story, panel.holds())), WIDTH) for panel in panels]
    loose = _part(story, ~torch.stack([panel.holds() for panel in panels]).any(0))
    extra = fill(f"+ newlines: {_counts(loose)}", WIDTH)
    return told if not loose else [*told[:-1], f"{told[-1]}\n{extra}"]


def _part(story: Story, where: Bool[Tensor, " visual"]) -> Story:
    return {slot: fate for (slot, fate), here in zip(story.items(), where.tolist(), strict=True) if here}


def _counts(story: Story) -> str:
    """Such as "246 kept, 62 merged, 330 bypassed"; a merged token is counted beside the members it stands for."""
    kinds, merged = Counter(fate.kind for fate in story.values()), len(anchors_of(story))
    words = [f"{kinds['kept']} kept"] + ([f"{merged} merged"] if merged else [])
    return ", ".join(words + [f"{kinds[kind]} {kind}" for kind in MEANING if kind != "kept" and kinds[kind]])


def _figure(panels: tuple[Panel, ...], columns: int, title: str) -> tuple[Figure, Any]:
    """An empty figure, a row of axes a panel; rows are as high as their panels are in proportion."""
    bounds = [panel.bounds() for panel in panels]
    # Within limits: a very long picture would leave a row of axes too flat to see, or fill the page.
    heights = [min(max((bottom - top) / (right - left), 0.25), 2.5) for left, top, right, bottom in bounds]
    size = (PANEL * columns, PANEL * sum(heights) + 0.4 * len(panels) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure, figure.subplots(len(panels), columns, squeeze=False, height_ratios=heights)


def _picture(axes: Axes, image: Image, panel: Panel, boxes: Sequence[Sequence[Number]], title: str) -> None:
    """The picture under its grid: one unit a patch, cropped to the patches that exist."""
    left, top, right, bottom = panel.frame(image.width, image.height)
    # y runs downwards: a token's patch is the unit square from (column, row).
    axes.imshow(np.asarray(image.convert("RGB")), extent=(left, right, bottom, top), zorder=0)
    for x1, y1, x2, y2 in boxes:
        corner = left + x1 * (right - left), top + y1 * (bottom - top)
        size = (x2 - x1) * (right - left), (y2 - y1) * (bottom - top)
        # White on black shows on any picture and under any veil.
        for width, colour in ((3.6, "black"), (1.6, "white")):
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width, zorder=4))
    first, low, last, high = panel.bounds()
    axes.set(xlim=(first, last), ylim=(high, low), xticks=[], yticks=[], aspect="equal", anchor="NW")
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")


def _veil(axes: Axes, panel: Panel, story: Story) -> None:
    """Cover every patch that did not go on by itself, and frame the anchors."""
    colours = _colours(story)
    # Alpha stays 0 where nothing covers the picture: at kept patches, and where the grid has no token.
    veil: Float[np.ndarray, "rows columns 4"] = np.zeros((panel.rows, panel.columns, 4))
    strokes = []
    for (down, right), (slot, fate) in zip(panel.place.tolist(), story.items(), strict=True):
        if down < 0:
            continue
        veil[down, right] = _cover(fate, colours)
        if fate.kind == "absorbed":
            strokes.append([(right + 0.2, down + 0.8), (right + 0.8, down + 0.2)])
        # Its own speaker without being kept: an anchor, in whose slot the merged token goes on.
        if fate.speaker == slot and fate.kind != "kept":
            corner = right + 0.08, down + 0.08
            axes.add_patch(Rectangle(corner, 0.84, 0.84, facecolor=colours[slot], edgecolor=GONE, lw=0.8, zorder=3))
    extent = (0, panel.columns, panel.rows, 0)
    axes.imshow(veil, extent=extent, interpolation="nearest", zorder=1)
    axes.add_collection(LineCollection(strokes, colors=GONE, linewidths=0.8, zorder=2), autolim=False)
    # Colours alone would fail on a dark or colourful picture: a white line runs around what was kept.
    axes.add_collection(LineCollection(_border(veil[..., 3] > 0), colors="white", linewidths=0.9, zorder=2), False)


def _border(covered: Bool[np.ndarray, "rows columns"]) -> list[list[tuple[int, int]]]:
    """The edges between covered patches and bare ones, as pairs of (x, y)."""
    # Where rows y and y + 1 differ, the edge lies at height y + 1; columns likewise.
    below = np.argwhere(covered[1:] != covered[:-1]).tolist()
    beside = np.argwhere(covered[:, 1:] != covered[:, :-1]).tolist()
    flat = [[(x, y + 1), (x + 1, y + 1)] for y, x in below]
    return flat + [[(x + 1, y), (x + 1, y + 1)] for y, x in beside]


def _colours(story: Story) -> dict[int, str]:
    """Speaker -> colour of its group, in turn, so that anchors next to each other differ."""
    speakers = sorted({fate.speaker for fate in story.values() if fate.kind != "kept" and fate.speaker is not None})
    return {speaker: GROUPS[rank % len(GROUPS)] for rank, speaker in enumerate(speakers)}


def _cover(fate: Fate, colours: Mapping[int, str]) -> tuple[float, float, float, float]:
    if fate.kind == "kept":
        return 0.0, 0.0, 0.0, 0.0
    if fate.kind == "dropped":
        return to_rgba(GONE, DIM)
    return _shade(WAITING if fate.speaker is None else colours[fate.speaker])


def _shade(colour: str) -> tuple[float, float, float, float]:
    red, green, blue = (SHADE * a + (1 - SHADE) * b for a, b in zip(to_rgb(colour), to_rgb(GONE), strict=True))
    return red, green, blue, TINT


def _legend(stories: Sequence[Story]) -> list[Patch]:
    """The kinds that occur, with their counts stage by stage; newline tokens are counted, too."""
    looks: Mapping[Kind, dict[str, Any]] = {
        "kept": {"facecolor": "white"},
        "bypassed": {"facecolor": _shade(GROUPS[0])},
        "absorbed": {"facecolor": _shade(GROUPS[0]), "hatch": "////"},
        "dropped": {"facecolor": to_rgba(GONE, DIM)},
    }
    handles = []
    for kind, meaning in MEANING.items():
        counts = [sum(fate.kind == kind for fate in story.values()) for story in stories]
        if any(counts):
            handles.append(Patch(edgecolor=GONE, label=f"{meaning} ({_series(counts)})", **looks[kind]))
    merged = [len(anchors_of(story)) for story in stories]
    if any(merged):
        label = f"merged token, in its anchor's place ({_series(merged)})"
        handles.insert(1, Patch(edgecolor=GONE, facecolor=GROUPS[0], label=label))
    return handles


def _series(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
