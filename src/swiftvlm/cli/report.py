"""What a run shows: facts as data, as a terminal table, and as a picture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from swiftvlm.amounts import Number
from swiftvlm.bench import Spread, Timing
from swiftvlm.families import find_family
from swiftvlm.figures import draw_patches
from swiftvlm.inputs import read_boxes
from swiftvlm.trace import Run


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr while something long runs; the value sets how much of `total` is done."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def facts_of(run: Run, answer: str, vanilla: str | None, timing: tuple[Timing, Timing] | None) -> dict[str, Any]:
    """Everything a run has to say, as plain data; times in seconds."""
    facts: dict[str, Any] = {
        "method": run.method,
        "answer": answer,
        "visual_tokens": run.visual[0],
        "text_tokens": run.text[0],
        "tokens_per_layer": run.tokens_per_layer,
        "average_tokens": run.average_tokens,
        "kv_bytes": run.kv_bytes,
        "vanilla_kv_bytes": run.vanilla_kv_bytes,
        "flops": run.flops,
        "vanilla_flops": run.vanilla_flops,
    }
    if vanilla is not None:
        facts["vanilla_answer"] = vanilla
    if timing is not None:
        for name, side in zip(("vanilla_seconds", "seconds"), timing, strict=True):
            facts[name] = {
                part: None if spread is None else spread.__dict__
                for part, spread in (("prefill", side.prefill), ("decode", side.decode))
            }
    return facts


def show(facts: dict[str, Any], saved: Path | None) -> None:
    """The facts as a table in the terminal, and where files went."""
    table = Table("", f"pruned ({facts['method']})", "unpruned", "ratio")
    for column in table.columns[1:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    for label, mine, whole, base, unit in (
        ("visual tokens", facts["average_tokens"], facts["visual_tokens"], 0, ""),
        ("KV cache", facts["kv_bytes"], facts["vanilla_kv_bytes"], 1024, "B"),
        ("prefill FLOPs", facts["flops"], facts["vanilla_flops"], 1000, ""),
    ):
        ratio = f"{mine / whole:.2f}" if whole else "-"
        table.add_row(label, scaled(mine, base, unit), scaled(whole, base, unit), ratio)
    if "seconds" in facts:
        for part, label in (("prefill", "first token"), ("decode", "later tokens")):
            table.add_row(label, *_times(facts["seconds"][part], facts["vanilla_seconds"][part]))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"visual tokens per layer: {_runs(facts['tokens_per_layer'])}", soft_wrap=True)
    if "seconds" in facts:
        console.print("times: median of alternated pairs after a warm-up, least to most in brackets")
    if saved is not None:
        console.print(f"saved to {saved}", soft_wrap=True)


def scaled(value: Number, base: int, unit: str) -> str:
    """A number with the prefix that makes it short: base 1000 (k, M, G, T), 1024 (Ki, Mi, Gi, Ti) or 0 (none)."""
    step = 0
    while base and value >= base and step < 4:
        value, step = value / base, step + 1
    # Binary prefixes are written with capitals, Ki too; of the decimal ones, kilo is not.
    prefix = " kMGT"[step].strip() if base else ""
    binary = "i" if base == 1024 and prefix else ""
    return f"{value:,.1f} {prefix.upper() if binary else prefix}{binary}{unit}".strip()


def _times(mine: dict[str, float] | None, whole: dict[str, float] | None) -> tuple[str, str, str]:
    # An answer of one token has no later ones to time.
    if mine is None or whole is None:
        return "-", "-", "-"
    return _milliseconds(Spread(**mine)), _milliseconds(Spread(**whole)), f"{mine['median'] / whole['median']:.2f}"


def _milliseconds(spread: Spread) -> str:
    return f"{1e3 * spread.median:.1f} ms ({1e3 * spread.least:.1f}-{1e3 * spread.most:.1f})"


def _runs(counts: tuple[int, ...]) -> str:
    """576 x 3, 308 x 7, ... of a list of counts."""
    stretches: list[tuple[int, int]] = []
    for count in counts:
        same = bool(stretches) and stretches[-1][0] == count
        times = stretches.pop()[1] + 1 if same else 1
        stretches.append((count, times))
    return ", ".join(f"{count} x {times}" for count, times in stretches)


def write_picture(
    path: Path, model: Any, processor: Any, image: Image.Image, seen: dict[str, Any], index: int, run: Run, answer: str
) -> None:
    """The image with its patches by fate, one panel a stage, and the answer's boxes, as PNG.

    `seen`: the model's inputs; where the model takes one view of an image, that view is drawn instead of the file.
    """
    grid = find_family(model).tile_grid(model, seen, index)
    if grid is None:
        image = to_picture(seen["pixel_values"][index], processor.image_processor)
    figure = draw_patches(image, run, image_index=index, boxes=read_boxes(answer), title=answer[:120], tile_grid=grid)
    figure.savefig(path, dpi=120, bbox_inches="tight", format="png")


def to_picture(pixels: torch.Tensor, processor: Any) -> Image.Image:
    """The picture that a tower saw: (3, height, width) normalised values back to 8-bit RGB."""
    shape = (3, 1, 1)
    mean, std = torch.tensor(processor.image_mean).view(shape), torch.tensor(processor.image_std).view(shape)
    values = (pixels.float().cpu() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(values.round().byte().permute(1, 2, 0).numpy())
