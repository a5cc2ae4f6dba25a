"""`swiftvlm figure NAME`: pictures from results and plans, as PNG and SVG."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import typer
from matplotlib.figure import Figure
from PIL.Image import Image
from rich.console import Console

import swiftvlm
from swiftvlm.cli.parse import read_budget, read_method, read_shape
from swiftvlm.errors import SwiftVLMError
from swiftvlm.evaluation import VANILLA
from swiftvlm.figures import (
    draw_accuracy,
    draw_changes,
    draw_cost,
    draw_lost,
    draw_overlap,
    draw_profile,
    draw_ranking,
    draw_river,
    draw_schematic,
    draw_stages,
    method_of,
)
from swiftvlm.mini import embedded_task
from swiftvlm.scenes import POOL_SIZE

# Each: what draws it from a result file's summary and rows, and the command that writes such a file.
Draw = Callable[[Any, Any], Figure]
FROM_RESULTS: dict[str, tuple[Draw, str]] = {
    "accuracy": (lambda summary, rows: draw_accuracy(summary), "swiftvlm eval"),
    "cost": (lambda summary, rows: draw_cost(summary), "swiftvlm eval"),
    "profile": (lambda summary, rows: draw_profile(summary[0]), "swiftvlm profile"),
    "ranking": (lambda summary, rows: draw_ranking(summary[0]), "swiftvlm explain"),
    "overlap": (lambda summary, rows: draw_overlap(rows), "swiftvlm explain"),
    "changes": (lambda summary, rows: draw_changes(summary[0]["changes"]), "swiftvlm explain"),
    "lost": (lambda summary, rows: _story(draw_lost, summary), "swiftvlm explain"),
    "stages": (lambda summary, rows: _story(draw_stages, summary), "swiftvlm explain"),
}
NAMES = (*FROM_RESULTS, "river", "schematic")


def figure(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(NAMES)}.")],
    data: Annotated[
        Path | None, typer.Option(help="Result file of swiftvlm eval, profile or explain, whichever it draws.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods of accuracy and cost (default: all), or of the river (fastv,swiftvlm), with commas."
        ),
    ] = None,
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
        chosen = _named(methods or "fastv,swiftvlm")
        drawn = draw_river({text: swiftvlm.plan(read_method(text), limit, size, visual_tokens) for text in chosen})
    elif name == "schematic":
        drawn = draw_schematic()
    else:
        draw, command = FROM_RESULTS[name]
        drawn = _drawn(draw, data, command, None if methods is None else _named(methods))
    # Ids in an SVG are salted at random unless told otherwise; the same figure shall be the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "swiftvlm"}):
        drawn.savefig(into / f"{name}.svg", metadata={"Date": None, "Creator": None})
        drawn.savefig(into / f"{name}.png", dpi=150, metadata={"Software": None})
    Console(highlight=False).print(f"saved to {into / name}.png and .svg", soft_wrap=True)


def _story(draw: Callable[[Image, Any], Figure], summary: Any) -> Figure:
    """A figure of the story's question, on its picture. Raises `SwiftVLMError` where there is no story."""
    story = summary[0]["story"]
    if story is None:
        raise SwiftVLMError("this file tells no story: on no question did only the last method keep what was asked")
    source, task, _ = story["key"].split("/")
    # The file has the question's key, not its picture: the scene is drawn anew from its seed.
    samples = embedded_task(task, POOL_SIZE, source).samples
    return draw(next(sample for sample in samples if sample.key == story["key"]).picture(), story)


def _named(methods: str) -> list[str]:
    return [text.strip() for text in methods.split(",")]


def _of(summary: Any, methods: list[str]) -> Any:
    """The records of some methods, and vanilla's. Raises `SwiftVLMError` for one that the file does not know."""
    known = list(dict.fromkeys(method_of(record["cell"]) for record in summary))
    if missing := [name for name in methods if name not in known]:
        raise SwiftVLMError(f"--methods {', '.join(missing)}: not in this file, which has {', '.join(known)}")
    return [record for record in summary if method_of(record["cell"]) in (VANILLA, *methods)]


def _drawn(draw: Draw, data: Path | None, command: str, methods: list[str] | None) -> Figure:
    """A figure of a result file. Raises `SwiftVLMError` for a file of another kind, or methods that it lacks."""
    if data is None:
        raise SwiftVLMError(f"give --data, the result file of {command}")
    try:
        read = json.loads(data.read_text())
        summary = read["summary"] if methods is None else _of(read["summary"], methods)
        return draw(summary, read["rows"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as wrong:
        # Most of our own errors are ValueErrors, too; they already say what is wrong.
        if isinstance(wrong, SwiftVLMError):
            raise
        raise SwiftVLMError(f"--data {data} is no result file of {command} ({wrong!r})") from None
