"""What each method keeps at each of its stages on one question, with its answer (the paper's figures 3 and 6)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL.Image import Image

from swiftvlm.figures.answers import TRUE, light
from swiftvlm.trace import Run, Trace

Said = Mapping[str, Any]


def draw_stages(image: Image, story: Mapping[str, Any]) -> Figure:
    """One row a method, one column a stage: dark patches were not selected there; green: what was asked about.

    `story`: as `swiftvlm explain` writes it, with every method's words and trace.
    """
    runs = {name: Trace.from_json(said["trace"]).last for name, said in story["said"].items()}
    columns = max(len(run.after) for run in runs.values())
    figure = Figure(figsize=(2.7 * columns + 0.4, 3.1 * len(runs) + 0.8), layout="constrained")
    figure.suptitle(_title(story), fontsize=11, fontweight="bold")
    lines = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
    for line, (name, run) in zip(lines, runs.items(), strict=True):
        line.suptitle(" ".join(_words(name, run, story["said"][name])), x=0.01, ha="left", fontsize=9)
        for stage, axes in enumerate(line.subplots(1, columns, squeeze=False)[0]):
            axes.axis("off")
            if stage < len(run.after):
                _panel(axes, image, run, stage, story["target"])
    figure.supxlabel("dark: not selected at this stage; green: what was asked about", fontsize=8)
    return figure


def draw_lost(image: Image, story: Mapping[str, Any]) -> Figure:
    """One panel a method: what its last stage kept, around what was asked about."""
    runs = {name: Trace.from_json(said["trace"]).last for name, said in story["said"].items()}
    figure = Figure(figsize=(3.3 * len(runs), 3.9), layout="constrained")
    figure.suptitle(_title(story), fontsize=11, fontweight="bold")
    for axes, (name, run) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        axes.axis("off")
        _panel(axes, image, run, len(run.after) - 1, story["target"])
        axes.set_title("\n".join(_words(name, run, story["said"][name])), fontsize=9)
    figure.supxlabel("dark: not selected by the last stage; green: what was asked about", fontsize=8)
    return figure


def _title(story: Mapping[str, Any]) -> str:
    return f"{story['question']}  (true: {story['answer']})"


def _words(name: str, run: Run, said: Said) -> tuple[str, str]:
    mark = "right" if said["right"] else "wrong"
    return f"{name}, {run.average_tokens:.0f} tokens a layer:", f"{said['words']} ({mark})"


def _panel(axes: Axes, image: Image, run: Run, stage: int, target: list[int]) -> None:
    pixels = np.asarray(image.convert("RGB")) / 255
    axes.imshow(pixels * light(run, image.width, image.height, stage)[..., None], interpolation="nearest")
    columns, rows = int(run.cells[0][:, 3].max()) + 1, int(run.cells[0][:, 2].max()) + 1
    x, y = image.width / columns, image.height / rows
    # `target` counts patches in raster order; the frame goes around all of them (a word may stand on several signs).
    across, down = [place % columns for place in target], [place // columns for place in target]
    corner = min(across) * x, min(down) * y
    size = (max(across) + 1) * x - corner[0], (max(down) + 1) * y - corner[1]
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=TRUE, linewidth=2))
    where = f"after layer {run.after[stage]}" if run.after[stage] else "before layer 1"
    axes.set_title(f"{where}: {len(run.kept[stage][0])} kept", fontsize=8)
