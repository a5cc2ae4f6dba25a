"""Accuracy against the visual tokens that were really computed, one line a method, one panel a task."""

import math
from typing import Any

from matplotlib.figure import Figure

from swiftvlm.plans import Number

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")


def draw_accuracy(summary: list[dict[str, Any]]) -> Figure:
    """Panels of accuracy (%, with one standard error) against average visual tokens; vanilla as a dashed line.

    `summary`: records with `task`, `cell` ("method@budget"), `tokens`, `accuracy`, `error`.
    """
    tasks = list(dict.fromkeys(record["task"] for record in summary))
    columns = min(3, max(1, len(tasks)))
    rows = max(1, math.ceil(len(tasks) / columns))
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    methods = list(dict.fromkeys(r["cell"].split("@")[0] for r in summary if "@" in r["cell"]))
    for axes, task in zip(panels, tasks, strict=False):
        here = [record for record in summary if record["task"] == task]
        for color, method in zip(COLORS * 3, methods, strict=False):
            points = sorted((r for r in here if r["cell"].split("@")[0] == method), key=lambda r: r["tokens"])
            if points:
                x, y, error = ([_scale(point, key) for point in points] for key in ("tokens", "accuracy", "error"))
                axes.errorbar(
                    x, y, error, label=method, color=color, marker="o", markersize=4, capsize=2, linewidth=1.4
                )
        for record in here:
            if record["cell"] == "vanilla":
                axes.axhline(100 * record["accuracy"], color="black", linestyle="--", linewidth=1, label="vanilla")
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("visual tokens, layer average", fontsize=8)
        axes.set_ylabel("accuracy, %", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    for axes in list(figure.axes)[len(tasks) :]:
        axes.remove()
    if tasks:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def _scale(record: dict[str, Any], key: str) -> Number:
    value = float(record[key])
    return value if key == "tokens" else 100 * value
