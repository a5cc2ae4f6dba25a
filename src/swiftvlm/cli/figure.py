"""`swiftvlm figure NAME`: pictures from results and plans, as PNG and SVG."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import typer
from matplotlib.figure import Figure
from rich.console import Console

import swiftvlm
from swiftvlm.cli.parse import read_budget, read_method, read_shape
from swiftvlm.errors import SwiftVLMError
from swiftvlm.figures.accuracy import draw_accuracy
from swiftvlm.figures.profile import draw_profile
from swiftvlm.figures.river import draw_river
from swiftvlm.figures.schematic import draw_schematic

# Each: what draws it from a result file's summary, and the command that writes such a file.
FROM_RESULTS: dict[str, tuple[Callable[[Any], Figure], str]] = {
    "accuracy": (draw_accuracy, "swiftvlm eval"),
    "profile": (lambda summary: draw_profile(summary[0]), "swiftvlm profile"),
}
NAMES = (*FROM_RESULTS, "river", "schematic")


def figure(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(NAMES)}.")],
    data: Annotated[
        Path | None, typer.Option(help="Result file of swiftvlm eval (accuracy) or profile (profile).")
    ] = None,
    methods: Annotated[str, typer.Option(help="Methods of the river, with commas.")] = "fastv,swiftvlm",
    budget: Annotated[str, typer.Option(help="Budget of the river.")] = "192",
    shape: Annotated[str, typer.Option(help="llava-1.5-7b, llava-1.5-13b, or a config file.")] = "llava-1.5-7b",
    visual_tokens: Annotated[int, typer.Option(help="Visual tokens of the river's prompt.")] = 576,
    into: Annotated[Path, typer.Option(help="Folder for NAME.png and NAME.svg.")] = Path("."),
) -> None:
    """Draw a figure from what was measured or planned.

    Example: swiftvlm figure river --methods fastv,swiftvlm --budget 128
    """
    if name not in NAMES:
        raise SwiftVLMError(f"no figure is called {name!r}; there are {', '.join(NAMES)}")
    if not into.is_dir():
        raise SwiftVLMError(f"--into {into}: there is no such folder")
    if name == "river":
        size, limit = read_shape(shape), read_budget(budget)
        chosen = [text.strip() for text in methods.split(",")]
        drawn = draw_river({text: swiftvlm.plan(read_method(text), limit, size, visual_tokens) for text in chosen})
    elif name == "schematic":
        drawn = draw_schematic()
    else:
        draw, command = FROM_RESULTS[name]
        drawn = _drawn(draw, data, command)
    # Ids in an SVG are salted at random unless told otherwise; the same figure shall be the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "swiftvlm"}):
        drawn.savefig(into / f"{name}.svg", metadata={"Date": None, "Creator": None})
        drawn.savefig(into / f"{name}.png", dpi=150, metadata={"Software": None})
    Console(highlight=False).print(f"saved to {into / name}.png and .svg", soft_wrap=True)


def _drawn(draw: Callable[[Any], Figure], data: Path | None, command: str) -> Figure:
    """A figure of a result file's summary. Raises `SwiftVLMError` for a file of another kind."""
    if data is None:
        raise SwiftVLMError(f"give --data, the result file of {command}")
    try:
        return draw(json.loads(data.read_text())["summary"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as wrong:
        raise SwiftVLMError(f"--data {data} is no result file of {command} ({wrong!r})") from None
