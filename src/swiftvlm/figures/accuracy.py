"""Accuracy against the visual tokens that were really computed, one line a method, one panel a task."""

import math
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swiftvlm.amounts import Number

MARKS = "osD"  # another shape and kind of line every round of colours
FONT = 8  # points, of small print
LINES = ("-", "--", ":")
# Okabe and Ito's, which stay apart for colour-blind readers, then grey and black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")


def draw_accuracy(summary: list[dict[str, Any]]) -> Figure:
    """Panels of accuracy (%, with one standard error) against average visual tokens; vanilla as a dashed line.

    `summary`: records with `task`, `cell` ("method@budget"), `tokens`, `accuracy`, `error`.
    """
    tasks = list(dict.fromkeys(record["task"] for record in summary))
    columns = min(3, max(1, len(tasks)))
    rows = max(1, math.ceil(len(tasks) / columns))
    # Not pyplot's, as in all figures here: pyplot would keep each one alive until it is closed.
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    methods = list(dict.fromkeys(method_of(record["cell"]) for record in summary if record["cell"] != "vanilla"))
    for axes, task in zip(panels, tasks, strict=False):
        _panel(axes, task, [record for record in summary if record["task"] == task], methods)
    for axes in panels[len(tasks) :]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    places = _places(figure.get_figwidth(), labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=places, fontsize=FONT, frameon=False)
    return figure


def _places(inches: Number, labels: list[str]) -> int:
    """Names side by side in a legend that is no wider than its figure."""
    letters = max(map(len, labels), default=0)
    # A letter is about 0.6 of its size wide, the mark in front as much as seven of them.
    wide = (letters + 7) * 0.6 * FONT / 72
    return max(1, min(5, len(labels), int(inches / wide)))


def _line(axes: Axes, method: str, records: list[dict[str, Any]], look: tuple[str, str, Any]) -> None:
    """One method over its budgets."""
    points = sorted(records, key=lambda record: record["tokens"])
    x = [point["tokens"] for point in points]
    y, error = ([100 * point[key] for point in points] for key in ("accuracy", "error"))
    style: dict[str, Any] = dict(zip(("color", "marker", "linestyle"), look, strict=True))
    axes.errorbar(x, y, error, label=method, markersize=4, capsize=2, linewidth=1.4, **style)


def _panel(axes: Axes, task: str, records: list[dict[str, Any]], methods: list[str]) -> None:
    # Mark and line both change from round to round, and the nine rounds are all the pairs there are.
    rounds = [(MARKS[i % 3], LINES[(i + i // 3) % 3]) for i in range(len(MARKS) * len(LINES))]
    looks = [(color, mark, line) for mark, line in rounds for color in COLORS]
    # Also methods without a point here: looks agree between panels, and the first one's legend serves all.
    for look, method in zip(cycle(looks), methods, strict=False):
        _line(axes, method, [record for record in records if method_of(record["cell"]) == method], look)
    for record in records:
        if record["cell"] == "vanilla":
            axes.axhline(100 * record["accuracy"], color="black", linestyle="--", linewidth=1, label="vanilla")
    axes.set_title(task, fontsize=10)
    axes.set_xlabel("visual tokens, layer average", fontsize=8)
    axes.set_ylabel("accuracy, %", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)


def method_of(cell: str) -> str:
    """The method of a cell, "method@budget"."""
    return cell.split("@")[0]
