"""How much of what later layers look at first stands in the lower half of an earlier layer (the paper's figure 2)."""

from typing import Any

from matplotlib.figure import Figure


def draw_ranking(facts: dict[str, Any]) -> Figure:
    """A table of shares in percent, early layers down, later layers across; half of them would be chance.

    `facts`: what `swiftvlm explain --json` prints: `ranking` (`early`, `late`, `share`) and `questions`.
    """
    told = facts["ranking"]
    early, late, share = told["early"], told["late"], told["share"]
    figure = Figure(figsize=(0.55 * len(late) + 2.2, 0.42 * len(early) + 1.5), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(share, vmin=0, vmax=1, cmap="magma_r", aspect="auto")
    for i, row in enumerate(share):
        for j, value in enumerate(row):
            color = "white" if value > 0.55 else "black"
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(late)), [str(layer) for layer in late])
    axes.set_yticks(range(len(early)), [str(layer) for layer in early])
    axes.set_xlabel("later layer: its top 10% of the visual tokens")
    axes.set_ylabel("earlier layer:\nits bottom 50%")
    axes.set_title(f"% of the later layer's top that the earlier one ranks low, {facts['questions']} questions", size=9)
    figure.colorbar(shown, ax=axes, format=lambda value, _: f"{100 * value:.0f}%")
    return figure
