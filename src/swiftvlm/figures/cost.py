"""Seconds and bytes of KV cache an answer, method by method, beside the unpruned model's."""

from typing import Any

from matplotlib.figure import Figure

from swiftvlm.figures.accuracy import COLORS, method_of

PARTS = (("seconds", "seconds an answer"), ("kv_bytes", "KV cache of an answer, MB"))


def draw_cost(summary: list[dict[str, Any]]) -> Figure:
    """Two panels of bars, one bar a method and budget, means over the tasks; vanilla's as a dashed line.

    `summary`: records with `cell`, `samples`, `seconds` (all of them together) and `kv_bytes` (mean).
    """
    cells = list(dict.fromkeys(record["cell"] for record in summary))
    figure = Figure(figsize=(8.4, 0.3 * len(cells) + 1.0), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), PARTS, strict=True):
        values = [_value(summary, cell, key) for cell in cells]
        shades = [_color(cell, cells) for cell in cells]
        bars = axes.barh(range(len(cells)), values, color=shades)
        axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
        if "vanilla" in cells:
            axes.axvline(values[cells.index("vanilla")], color="black", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(cells)), cells, fontsize=8)
        axes.set_xlabel(title, fontsize=9)
        axes.margins(x=0.15)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        # First cell on top. The panels share the axis: inverting it for the second would turn it back for both.
        if not axes.yaxis_inverted():
            axes.invert_yaxis()
    return figure


def _color(cell: str, cells: list[str]) -> str:
    """That of the accuracy figure; vanilla is black."""
    methods = list(dict.fromkeys(method_of(name) for name in cells if name != "vanilla"))
    return "black" if cell == "vanilla" else COLORS[methods.index(method_of(cell)) % len(COLORS)]


def _value(summary: list[dict[str, Any]], cell: str, key: str) -> float:
    records = [record for record in summary if record["cell"] == cell]
    # Seconds are sums over a record's samples, bytes are means already.
    if key == "seconds":
        return float(sum(record["seconds"] for record in records) / sum(record["samples"] for record in records))
    return float(sum(record[key] for record in records) / len(records) / 1e6)
