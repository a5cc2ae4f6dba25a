"""The method as one drawing: three ways to prune, and the mechanics of a bypass (the ideas of the paper's Figs. 1, 5).

One example runs through all of it: eight visual tokens, of which layer x keeps 1, 4 and 6; the rest forms the groups
{0, 2} and {3, 5, 7}, and token 3 holds the answer. A string says what is in the eight places, one letter a token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from swiftvlm.amounts import Number
from swiftvlm.figures.patches import GONE, GROUPS, WAITING

Point = tuple[Number, Number]

WIDTH, HEIGHT = 1000, 800  # 1/100 inch, y downwards; so are all lengths below
INK, SOFT, PAPER, LINE, RAIL = GONE, "#59616D", "#F3F5F8", "#A9B1BD", "#DDE3EA"
KEPT, FIRST, SECOND = "#0072B2", GROUPS[0], GROUPS[1]
LOOKS = {  # (fill, edge): tokens nobody ranked yet, kept ones, members of either group, and the two merged tokens
    ".": ("#D5DAE1", WAITING),
    "K": (KEPT, KEPT),
    "a": ("#FBE6B5", FIRST),
    "b": ("#BFE5D8", SECOND),
    "A": (FIRST, INK),
    "B": (SECOND, INK),
}
ANSWER = 3
ALL, CHOSEN, GROUPED, MERGED, FINAL = "........", "-K--K-K-", "aKabKbKb", "AK--KBK-", "---KK-K-"
MEMBERS = (("A", 0, (0, 2)), ("B", 5, (3, 5, 7)))  # each group's merged token, the place of its anchor, its members
LANES = (  # letter, name, the rest's fate; places after layer x, before layer y, from layer y on; what it means
    (
        "a",
        "Merge early",
        "groups go on as\ntheir means",
        MERGED,
        MERGED,
        "----KBK-",
        "the answer stays\nblurred in a mean",
    ),
    ("b", "Drop early", "the rest is gone\nfor good", CHOSEN, CHOSEN, "----K-K-", "the answer\ncannot come back"),
    ("c", "Bypass", "means go on, their\nmembers wait", MERGED, GROUPED, FINAL, "the answer is\nranked again"),
)
STRIPS, BARS = (168, 360, 552, 744), (304, 496, 688)  # left edges of the lanes' tokens and layers
PITCH, TALL = 15.0, 21.0  # from token to token in a strip, and in a stack
STACK = 526.0  # the middle of a stack's first token
SELECT, GROUP, MERGE, BEFORE, AFTER, RESTORE, RANK, CHOOSE = 122, 222, 326, 592, 640, 728, 838, 930
SCORES_X = (0.3, 0.95, 0.2, 0.45, 0.8, 0.35, 0.7, 0.15)  # of layer x, which overlooks the answer
SCORES_Y = (0.15, 0.4, 0.2, 0.95, 0.75, 0.3, 0.65, 0.25)  # of layer y


def draw_schematic() -> Figure:
    """The whole drawing, 10 inches wide; the caller saves it."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.set_axis_off()
    pen = _Pen(axes)
    _lanes(pen)
    _frames(pen)
    _after_x(pen)
    _before_y(pen)
    _key(pen, 782)
    return figure


@dataclass(frozen=True)
class _Pen:
    """The few shapes that everything is made of."""

    axes: Axes

    def text(
        self,
        at: Point,
        words: str,
        size: Number = 8,
        colour: str = SOFT,
        bold: bool = False,
        ha: Literal["left", "center"] = "center",
        turned: bool = False,
    ) -> None:
        """Words, their vertical middle at a point."""
        weight, angle = "bold" if bold else "normal", 90 if turned else 0
        self.axes.text(
            *at, words, fontsize=size, color=colour, fontweight=weight, ha=ha, va="center", rotation=angle, zorder=6
        )

    def box(
        self, corner: Point, size: Point, fill: str, edge: str, radius: Number, dashed: bool = False, zorder: Number = 3
    ) -> None:
        """A rectangle with round corners, behind every line where `zorder` is 1."""
        shape = f"round,pad=0,rounding_size={radius}"
        line = (0, (2, 1.5)) if dashed else "-"
        self.axes.add_patch(
            FancyBboxPatch(corner, *size, shape, fc=fill, ec=edge, lw=0.9, linestyle=line, zorder=zorder)
        )

    def line(self, points: Iterable[Point], colour: str, width: Number = 1.5, zorder: Number = 2) -> None:
        """A line through points."""
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, color=colour, linewidth=width, zorder=zorder, solid_joinstyle="round")

    def arrow(self, start: Point, end: Point, colour: str = SOFT, width: Number = 1.0) -> None:
        """A straight arrow."""
        head = 6 + 2 * width
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=head,
                color=colour,
                lw=width,
                shrinkA=0,
                shrinkB=0,
                zorder=4,
            )
        )

    def token(self, at: Point, kind: str, answer: bool = False, size: Number = 12.0) -> None:
        """One token, or an empty place for "-". A star marks the answer unless it is lost in a mean."""
        corner = at[0] - size / 2, at[1] - size / 2
        fill, edge = LOOKS.get(kind, ("white", LINE))
        self.box(corner, (size, size), fill, edge, size / 5, dashed=kind == "-")
        if answer and kind != "-":
            colour = "white" if kind == "K" else INK
            self.axes.plot(*at, marker="*", markersize=size * 0.55, color=colour, markeredgewidth=0, zorder=5)

    def strip(self, left: Number, y: Number, places: str) -> None:
        """Eight places side by side."""
        for place, kind in enumerate(places):
            self.token((left + PITCH * (place + 0.5), y), kind, place == ANSWER)

    def stack(self, x: Number, places: str, size: Number = 15.0) -> None:
        """Eight places one above the other; " " leaves one out."""
        for place, kind in enumerate(places):
            if kind != " ":
                self.token((x, _row(place)), kind, place == ANSWER, size)


def _row(place: int) -> float:
    """The height of a place in every stack."""
    return STACK + TALL * place


def _lanes(pen: _Pen) -> None:
    """Three strategies as lanes through the same layers."""
    pen.text((20, 26), "Three ways to prune visual tokens inside the language model", 13, INK, bold=True, ha="left")
    for left, words in zip(
        STRIPS, ("all visual tokens", "after layer x", "before layer y", "from layer y on"), strict=True
    ):
        pen.text((left + 4 * PITCH, 62), words, 8.5, INK)
    for left, words in zip(BARS, ("layers 1 … x", "layers x+1 … y-1", "choose again"), strict=True):
        pen.box((left, 80), (40, 212), PAPER, LINE, 7)
        pen.text((left + 20, 186), words, 8, turned=True)
    for index, (letter, name, rest, *places, meaning) in enumerate(LANES):
        y = 112.0 + 74 * index
        pen.text((20, y - 20), f"{letter}  {name}", 10.5, INK, bold=True, ha="left")
        pen.text((37, y + 4), rest, ha="left")
        for left, tokens in zip(STRIPS, (ALL, *places), strict=True):
            pen.strip(left, y, tokens)
        for left in BARS:
            pen.arrow((left - 13, y), (left - 1, y))
            pen.arrow((left + 41, y), (left + 53, y))
        pen.text((932, y), meaning, 8, KEPT if name == "Bypass" else SOFT, bold=name == "Bypass")
    _rail(pen, (420, 274), (612, 274), 316, 12.0)
    pen.text((516, 336), "bypass", 8, INK)


def _rail(pen: _Pen, start: Point, end: Point, low: Number, size: Number) -> None:
    """The side lane: down, along `low` with the waiting members, and up again."""
    path = (start, (start[0], low), (end[0], low), end)
    pen.line(path, RAIL, width=size * 1.1, zorder=2)
    pen.arrow((end[0], low), end, SOFT, 1.2)
    waiting = [(place, kind) for place, kind in enumerate(GROUPED) if kind != "K"]
    middle, pitch = (start[0] + end[0]) / 2, size * 1.35
    for rank, (place, kind) in enumerate(waiting):
        pen.token((middle + pitch * (rank - (len(waiting) - 1) / 2), low), kind, place == ANSWER, size)


def _frames(pen: _Pen) -> None:
    """The parts of the lower half, and the side lane that joins the outer two."""
    pen.text((20, 376), "How the bypass works", 13, INK, bold=True, ha="left")
    for left, right, words in ((20, 370, "after layer x"), (566, 980, "before layer y")):
        pen.box((left, 400), (right - left, 302), PAPER, LINE, 10, zorder=1)
        pen.text((left + 14, 418), words, 10, INK, bold=True, ha="left")
    pen.box((404, 504), (128, 190), PAPER, LINE, 10, zorder=1)
    pen.text((468, 452), "in between", 10, INK, bold=True)
    pen.text((468, 480), "kept and merged\ntokens only")
    pen.text((468, 599), "layers\nx+1 … y-1", 9.5)
    # Places count from 0: row 8 is below the stacks.
    _rail(pen, (GROUP, _row(8) - 6), (RESTORE, _row(8) - 6), 732, 15.0)
    pen.text((468, 755), "the members wait beside the layers, unchanged", 8, INK)


def _after_x(pen: _Pen) -> None:
    """Select, group, merge."""
    _step(pen, SELECT - 22, "1  select", "by attention of the\nlast prompt token,\nlayer x's own map")
    _step(pen, GROUP, "2  group", "the rest by\ncosine similarity\n(eq. 10)")
    _step(pen, MERGE, "3  merge", "each group\nto its mean\n(eq. 11)")
    _bars(pen, SELECT - 13, SCORES_X, CHOSEN)
    pen.stack(SELECT, ALL)
    pen.stack(GROUP, GROUPED)
    pen.stack(MERGE, MERGED.replace("-", " "))
    for place, kind in enumerate(CHOSEN):
        pen.line(((SELECT, _row(place)), (GROUP, _row(place))), KEPT if kind == "K" else LINE)
        if kind == "K":
            pen.line(((GROUP, _row(place)), (MERGE, _row(place))), KEPT)
    for merged, anchor, members in MEMBERS:
        for place in members:
            pen.line(((GROUP, _row(place)), (MERGE, _row(anchor))), LOOKS[merged][0])
    _through(pen, MERGE, 403)


def _before_y(pen: _Pen) -> None:
    """Offset, restore, re-rank, select."""
    _step(pen, (BEFORE + AFTER) / 2 + 4, "4  offset", "how far each\nmean has moved\n(eq. 12)")
    _step(pen, RESTORE, "5  restore", "members move\nby as much\n(eq. 13)")
    _step(pen, RANK - 18, "6  re-rank", "all tokens, with\nlayer y's query\nand keys")
    _step(pen, CHOOSE, "7  select", "the rest waits\nagain; the last\nstage drops it")
    _through(pen, 533, AFTER)
    for merged, anchor, members in MEMBERS:
        colour, y = LOOKS[merged][0], _row(anchor)
        pen.box((BEFORE - 7.5, y - 7.5), (15, 15), PAPER, colour, 3, dashed=True)
        pen.arrow((BEFORE + 8, y), (AFTER - 9, y), colour, 1.8)
        pen.text(((BEFORE + AFTER) / 2 - 1, y - 10), "Δ", 8, INK)
        for place in members:
            pen.line(((AFTER, y), (RESTORE, _row(place))), colour)
    pen.stack(AFTER, MERGED.replace("-", " "))
    pen.stack(RESTORE, GROUPED)
    pen.stack(RANK, ALL)
    _bars(pen, RANK - 13, SCORES_Y, FINAL)
    for place, kind in enumerate(FINAL):
        # Tokens that layer x kept ran through the layers themselves: no offset is added to them.
        if CHOSEN[place] == "K":
            pen.line(((AFTER, _row(place)), (RESTORE, _row(place))), KEPT)
        if kind == "K":
            pen.line(((RANK, _row(place)), (CHOOSE, _row(place))), KEPT)
    pen.stack(CHOOSE, FINAL)


def _step(pen: _Pen, x: Number, name: str, words: str) -> None:
    """The heading of one step."""
    pen.text((x, 446), name, 9.5, INK, bold=True)
    pen.text((x, 480), words, 7.5)


def _bars(pen: _Pen, right: Number, scores: tuple[Number, ...], chosen: str) -> None:
    """Scores of the tokens of a stack as bars that end at `right`."""
    for place, (score, kind) in enumerate(zip(scores, chosen, strict=True)):
        corner = right - 44 * score, _row(place) - 4
        colour = KEPT if kind == "K" else LINE
        pen.box(corner, (44 * score, 8), colour, colour, 1)


def _through(pen: _Pen, start: Number, end: Number) -> None:
    """Kept and merged tokens on their way into the layers in between, or out of them."""
    for place, kind in enumerate(MERGED):
        if kind != "-":
            pen.line(((start, _row(place)), (end, _row(place))), LOOKS[kind][0])


def _key(pen: _Pen, y: Number) -> None:
    """What the tokens' looks mean."""
    looks = {".": "not ranked yet", "K": "kept", "ab": "not kept: members of two groups"}
    x = 26.0
    for kinds, words in {**looks, "AB": "merged tokens: their means", "-": "nothing there any more"}.items():
        for kind in kinds:
            pen.token((x, y), kind)
            x += PITCH
        pen.text((x - 3, y), words, ha="left")
        # A letter of 8 points is about 6/100 inch wide.
        x += 6.05 * len(words) + 22
    pen.axes.plot(x, y, marker="*", markersize=8, color=INK, markeredgewidth=0)
    pen.text((x + 10, y), "holds the answer", ha="left")
