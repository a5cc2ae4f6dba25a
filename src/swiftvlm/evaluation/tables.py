"""Figures as a terminal table: one line a method and budget, in the layout of the paper's Table 1."""

from collections.abc import Callable, Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from swiftvlm.amounts import Number
from swiftvlm.evaluation.summary import VANILLA
from swiftvlm.evaluation.tasks import Task

Record = dict[str, Any]
COSTS = ("tokens", "GFLOPs", "s/answer")


def table(summary: list[Record], tasks: list[Task], floors: dict[str, str]) -> Table:
    """The summary for a terminal; a budget that a method cannot meet (a key of `floors`) is a row of dashes."""
    # Localization first, as in the paper, each kind of task with its own average.
    sides = [[task for task in tasks if task.localization is kind] for kind in (True, False)]
    sides = [side for side in sides if side]
    shown = Table(
        title="accuracy, % ± standard error; avg %: relative to vanilla", title_justify="left", box=SIMPLE_HEAD
    )
    shown.add_column("method", no_wrap=True)
    for name in [*_under(sides, lambda task: task.name, "avg %"), *COSTS]:
        shown.add_column(name, justify="right", no_wrap=True)
    for cell in dict.fromkeys([*(record["cell"] for record in summary), *floors]):
        mine = {record["task"]: record for record in summary if record["cell"] == cell}
        shown.add_row(cell, *_accuracies(cell, mine, sides), *_costs(list(mine.values())))
    chances = _under(sides, lambda task: f"{100 * task.chance():.1f}", "")
    shown.add_row("chance", *chances, *[""] * len(COSTS), style="dim")
    return shown


def _under(sides: list[list[Task]], say: Callable[[Task], str], last: str) -> list[str]:
    """What is said of each task, and behind each side's tasks of their average."""
    return [text for side in sides for text in (*map(say, side), last)]


def _accuracies(cell: str, mine: dict[str, Record], sides: list[list[Task]]) -> Iterator[str]:
    for side in sides:
        there = [mine[task.name] for task in side if task.name in mine]
        yield from (_accuracy(mine.get(task.name)) for task in side)
        yield _share(cell, there)


def _accuracy(record: Record | None) -> str:
    return "-" if record is None else f"{100 * record['accuracy']:.1f} ±{100 * record['error']:.1f}"


def _share(cell: str, records: list[Record]) -> str:
    """Mean over tasks of the accuracy relative to vanilla, in percent."""
    # Vanilla's records are not compared with themselves: they have no "relative".
    known = [1.0 for _ in records] if cell == VANILLA else [r["relative"] for r in records if "relative" in r]
    return f"{100 * sum(known) / len(known):.1f}" if known else "-"


def _costs(records: list[Record]) -> tuple[str, str, str]:
    if not records:
        return "-", "-", "-"
    seconds = sum(record["seconds"] for record in records) / sum(record["samples"] for record in records)
    return f"{_mean(records, 'tokens'):.1f}", f"{_mean(records, 'flops') / 1e9:.2f}", f"{seconds:.3f}"


def _mean(records: list[Record], key: str) -> Number:
    # Over answers, as seconds are: tasks may have different numbers of them.
    return float(sum(record[key] * record["samples"] for record in records) / sum(r["samples"] for r in records))
