"""The same question answered by several methods: the picture under what each of them saw last, with its box."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL.Image import Image

from swiftvlm.amounts import Number
from swiftvlm.figures.fates import fates
from swiftvlm.trace import Run

Box = Sequence[Number]
TRUE, SAID = "#009E73", "#D55E00"
DARK = 0.72  # how much of a patch that is gone is covered


@dataclass(frozen=True)
class Answer:
    """What one method said: its name, its words, its box (shares of the picture's sides) and its run."""

    name: str
    words: str
    box: Box | None
    right: bool
    run: Run


def draw_answers(image: Image, question: str, truth: Box | None, answers: Sequence[Answer]) -> Figure:
    """One panel an answer: patches that the last stage dropped are dark, the true box green, the answered one orange.

    `image`: one grid of patches, as LLaVA-1.5's tower sees it. `truth`, boxes: (x1, y1, x2, y2), shares of its sides.
    """
    figure = Figure(figsize=(3.6 * len(answers), 4.5), layout="constrained")
    figure.suptitle(question, fontsize=12, fontweight="bold")
    for axes, answer in zip(figure.subplots(1, len(answers), squeeze=False)[0], answers, strict=True):
        pixels = np.asarray(image.convert("RGB")) / 255
        axes.imshow(pixels * light(answer.run, image.width, image.height)[..., None], interpolation="nearest")
        for box, color, dash in ((truth, TRUE, "--"), (answer.box, SAID, "-")):
            if box is not None:
                left, top = box[0] * image.width, box[1] * image.height
                size = (box[2] * image.width - left, box[3] * image.height - top)
                axes.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=color, linewidth=2, linestyle=dash))
        mark = "right" if answer.right else "wrong"
        tokens = f"{answer.run.average_tokens:.0f} tokens a layer"
        axes.set_title(f"{answer.name}, {tokens}\n{answer.words} ({mark})", fontsize=9)
        axes.axis("off")
    figure.supxlabel("green, dashed: true box; orange: answered box; dark: dropped by the last stage", fontsize=8)
    return figure


def light(run: Run, width: int, height: int, stage: int = -1) -> np.ndarray:
    """How bright each pixel is shown (height, width): patches that a stage (the last) did not select are dark."""
    bright = np.ones((height, width))
    if not run.after:
        return bright
    # Both list the row's visual tokens in the same order: slots on one side, places in the grid on the other.
    story, cells = fates(run, 0)[stage], run.cells[0]
    rows, columns = int(cells[:, 2].max()) + 1, int(cells[:, 3].max()) + 1
    for (_, fate), (_, _, row, column) in zip(story.items(), cells.tolist(), strict=True):
        if fate.kind != "kept":
            # Edges rounded down on both sides: neighbours meet, whatever the picture's size.
            part = np.s_[
                row * height // rows : (row + 1) * height // rows,
                column * width // columns : (column + 1) * width // columns,
            ]
            bright[part] = 1 - DARK
    return bright
