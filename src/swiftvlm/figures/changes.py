"""Changes of hidden states in two dimensions: members, their group's mean, the merged token (the paper's figure 7)."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Planes = Mapping[str, Sequence[Mapping[str, Any]]]


def draw_changes(planes: Planes) -> Figure:
    """One column a share of merged tokens, one row a stage; a colour a group.

    `planes`: share -> `projected` changes (`members`, `means`, `merged`, `groups`, `first`, `last`).
    """
    rows = max(len(column) for column in planes.values())
    figure = Figure(figsize=(4.2 * len(planes), 3.9 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, len(planes), squeeze=False)
    for j, (share, column) in enumerate(planes.items()):
        for i, plane in enumerate(column):
            _panel(panels[i][j], plane)
            size = f"{len(plane['merged'])} groups of {len(plane['members'])} tokens"
            title = f"layers {plane['first'] + 1} to {plane['last']}, {size}"
            panels[i][j].set_title(f"{title}\nmerged tokens: {100 * float(share):.0f}% of the stage", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _panel(axes: Axes, plane: Mapping[str, Any]) -> None:
    wheel = colormaps["hsv"]
    groups = len(plane["merged"])
    # Neighbouring groups in far colours.
    colors = [wheel((0.618 * group) % 1.0) for group in range(groups)]
    looks: tuple[tuple[str, str, str, int, float], ...] = (
        ("members", "a member's change, unpruned", "o", 9, 0.5),
        ("means", "its group's mean, unpruned", "X", 55, 1.0),
        ("merged", "the merged token's change", "*", 80, 1.0),
    )
    for key, label, marker, size, alpha in looks:
        x, y = zip(*plane[key], strict=True)
        shades = [colors[group] for group in (plane["groups"] if key == "members" else range(groups))]
        edge: dict[str, Any] = {} if key == "members" else {"edgecolors": "black", "linewidths": 0.6}
        axes.scatter(x, y, s=size, c=shades, marker=marker, alpha=alpha, label=label, **edge)
    axes.set_xticks([])
    axes.set_yticks([])
