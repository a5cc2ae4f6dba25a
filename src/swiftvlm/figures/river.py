"""Visual tokens at every layer, method by method: where a budget is spent."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from swiftvlm.figures.accuracy import COLORS
from swiftvlm.plans import Plan

ROOM = 0.14  # share of the visual tokens from which a label fits into a band


def draw_river(plans: Mapping[str, Plan]) -> Figure:
    """One panel a method: a band as wide as the visual tokens at a layer's input, merged ones shaded, left to right."""
    figure = Figure(figsize=(7.2, 1.25 * len(plans) + 0.4), layout="constrained")
    panels = figure.subplots(len(plans), 1, sharex=True, squeeze=False)[:, 0]
    for axes, color, (name, plan) in zip(panels, COLORS * 3, plans.items(), strict=False):
        edges = range(plan.layers + 1)
        # step="post" holds a value to the next edge, and edges are one more than layers: the last value is repeated.
        total = [*plan.tokens_per_layer, plan.tokens_per_layer[-1]]
        merged = _merged(plan)
        axes.fill_between(edges, [n / 2 for n in total], [-n / 2 for n in total], step="post", color=color, alpha=0.35)
        kept = [(n - m) / 2 for n, m in zip(total, merged, strict=True)]
        axes.fill_between(edges, kept, [-n for n in kept], step="post", color=color, alpha=0.8)
        for cut in plan.cuts:
            # A label that does not fit into its band stands above it.
            inside = cut.total > ROOM * plan.visual
            place = {"va": "center"} if inside else {"va": "bottom"}
            y, ink = (0.0, "white") if inside else (cut.total / 2 + 4, "black")
            axes.text(cut.after + 0.15, y, str(cut.total), fontsize=8, color=ink, **place)
        axes.set_title(f"{name}: {plan.average_tokens:.1f} of {plan.visual} on average", fontsize=9, loc="left")
        axes.set_yticks([])
        axes.set_xlim(0, plan.layers)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[-1].set_xlabel("layers run")
    return figure


def _merged(plan: Plan) -> list[int]:
    """Merged tokens behind 0, 1, ... layers."""
    counts = [0] * (plan.layers + 1)
    for cut in plan.cuts:
        counts[cut.after :] = [cut.merged] * (plan.layers + 1 - cut.after)
    return counts
