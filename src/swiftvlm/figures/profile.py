"""How well each layer knows which visual tokens matter, and the layers that were chosen (the paper's figure 4)."""

from typing import Any

from matplotlib.figure import Figure

from swiftvlm.figures.accuracy import COLORS


def draw_profile(facts: dict[str, Any]) -> Figure:
    """The profile with one standard error, each task's behind it, and y(t) with the chosen layers.

    `facts`: what `swiftvlm profile --json` prints: `relative`, `errors`, `tasks` (each one's accuracies and
    vanilla's), `y` and `layers`.
    """
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    layers = range(1, len(facts["relative"]) + 1)
    # The first colour is the mean's.
    for color, (task, record) in zip(COLORS[1:] * 3, facts["tasks"].items(), strict=False):
        if record["vanilla"] > 0:
            shares = [value / record["vanilla"] for value in record["accuracy"]]
            axes.plot(layers, shares, color=color, linewidth=0.9, alpha=0.6, label=task)
    look: dict[str, Any] = {"color": COLORS[0], "linewidth": 2, "elinewidth": 0.9, "capsize": 2, "zorder": 3}
    axes.errorbar(layers, facts["relative"], facts["errors"], label="mean", **look)
    axes.step(layers, facts["y"], where="post", color="black", linestyle="--", linewidth=1, label="y(t) of the chosen")
    for layer in facts["layers"]:
        value = facts["relative"][layer - 1]
        axes.plot(layer, value, marker="o", markersize=9, markerfacecolor="none", color="black", zorder=4)
        axes.annotate(str(layer), (layer, value), (-5, 9), textcoords="offset points", ha="right", fontsize=10)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("layer whose first tokens all layers from the third on see")
    axes.set_ylabel("accuracy relative to vanilla")
    axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2, frameon=False)
    return figure
