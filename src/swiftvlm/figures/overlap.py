"""What the last stage keeps of the whole model's first tokens, after drops and bypasses (the paper's figure 8)."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swiftvlm.figures.accuracy import COLORS

STEPS = [i / 20 for i in range(21)]
LOOKS = {"drop": COLORS[1], "bypass": COLORS[0]}


def draw_overlap(rows: Sequence[dict[str, Any]]) -> Figure:
    """One panel a task and top: how many questions kept which share of it, and the means as lines.

    `rows`: of `swiftvlm explain`: `task` and `kept of top` (fate -> top -> share).
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    tops = list(rows[0]["kept of top"]["drop"])
    figure = Figure(figsize=(3.5 * len(tops), 2.5 * len(tasks) + 0.4), layout="constrained")
    panels = figure.subplots(len(tasks), len(tops), squeeze=False, sharex=True)
    for i, task in enumerate(tasks):
        mine = [row["kept of top"] for row in rows if row["task"] == task]
        for j, top in enumerate(tops):
            _panel(panels[i][j], mine, top)
            panels[i][j].set_title(f"{task}: the whole model's top {100 * float(top):.0f}%", fontsize=9)
        panels[i][0].set_ylabel(f"questions (of {len(mine)})", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("share of it that the last stage kept", fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _panel(axes: Axes, found: Sequence[dict[str, Any]], top: str) -> None:
    for fate, color in LOOKS.items():
        values = [one[fate][top] for one in found]
        middle = sum(values) / len(values)
        axes.hist(values, bins=STEPS, color=color, alpha=0.45, label=fate)
        axes.axvline(middle, color=color, linewidth=1.6)
        # Two heights, so that labels of means close to each other stay apart.
        height = 0.97 if fate == "bypass" else 0.85
        across = axes.get_xaxis_transform()
        axes.text(middle + 0.015, height, f"{middle:.2f}", transform=across, fontsize=8, color=color, va="top")
    axes.set_xlim(0, 1)
    axes.tick_params(labelsize=8)
