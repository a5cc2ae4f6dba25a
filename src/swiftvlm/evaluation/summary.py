"""Results as tables: one line a method and budget, in the layout of the paper's Table 1."""

from collections import defaultdict
from typing import Any

from rich.table import Table

from swiftvlm.evaluation.journal import Row
from swiftvlm.evaluation.scorers import f1, mean, paired
from swiftvlm.evaluation.tasks import Task
from swiftvlm.plans import Number

VANILLA = "vanilla"


def summarize(rows: list[Row], cells: list[str]) -> list[dict[str, Any]]:
    """One record a cell and task: accuracy with its error, tokens, FLOPs, seconds, beside vanilla's on its samples.

    `change`, `change_error`: paired difference to vanilla. `f1` of `yes` where the answers are yes and no.
    """
    grouped: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["cell"], row["task"]].append(row)
    found = []
    for cell in cells:
        for task in dict.fromkeys(row["task"] for row in rows):
            mine = grouped.get((cell, task))
            if mine:
                whole = {row["key"]: row for row in grouped.get((VANILLA, task), [])}
                found.append(_record(cell, task, mine, whole))
    return found


def _record(cell: str, task: str, rows: list[Row], whole: dict[str, Row]) -> dict[str, Any]:
    accuracy, error = mean([row["score"] for row in rows])
    record = {
        "task": task,
        "cell": cell,
        "samples": len(rows),
        "accuracy": accuracy,
        "error": error,
        "tokens": mean([row["tokens"] for row in rows])[0],
        "flops": mean([row["flops"] for row in rows])[0],
        "seconds": sum(row["seconds"] for row in rows),
    }
    both = [row for row in rows if row["key"] in whole]
    if both and cell != VANILLA:
        change, doubt = paired([row["score"] for row in both], [whole[row["key"]]["score"] for row in both])
        record |= {"change": change, "change_error": doubt}
        base = sum(row["score"] for row in (whole[row["key"]] for row in both))
        # Where vanilla is never right, nothing can be said relative to it.
        record |= {"relative": sum(row["score"] for row in both) / base} if base else {}
    if task == "pope":
        # A right `yes` and a wrong `no` both stand for a true yes.
        said = [row["answer"] == "yes" for row in rows]
        record["f1"] = f1(said, [yes == bool(row["score"]) for yes, row in zip(said, rows, strict=True)])
    return record


def _share(cell: str, records: list[dict[str, Any]]) -> str:
    """Mean over tasks of the accuracy relative to vanilla, in percent."""
    known = [1.0 for _ in records] if cell == VANILLA else [r["relative"] for r in records if "relative" in r]
    return f"{100 * sum(known) / len(known):.1f}" if known else "-"


def table(summary: list[dict[str, Any]], tasks: list[Task], floors: dict[str, str]) -> Table:
    """The summary for a terminal; a budget that a method cannot meet is a row of dashes."""
    sides = ([task.name for task in tasks if task.localization], [task.name for task in tasks if not task.localization])
    shown = Table(title="accuracy, % (standard error); avg %: relative to vanilla", title_justify="left")
    columns = ["method", *sides[0], "avg %"] if sides[0] else ["method"]
    columns += [*sides[1], "avg %"] if sides[1] else []
    for name in [*columns, "tokens", "GFLOPs", "s/answer"]:
        shown.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for cell in dict.fromkeys([record["cell"] for record in summary] + list(floors)):
        mine = {record["task"]: record for record in summary if record["cell"] == cell}
        cut = list(mine.values())
        line = [cell]
        for side in sides:
            line += [_accuracy(mine.get(name)) for name in side]
            line += [_share(cell, [mine[name] for name in side if name in mine])] if side else []
        line += [f"{_mean(cut, 'tokens'):.1f}", f"{_mean(cut, 'flops') / 1e9:.2f}"] if cut else ["-", "-"]
        seconds = sum(r["seconds"] for r in cut) / max(1, sum(r["samples"] for r in cut))
        shown.add_row(*line, f"{seconds:.3f}" if cut else "-")
    shown.add_row("chance", *_chances(sides, tasks), "", "", "", style="dim")
    return shown


def _chances(sides: tuple[list[str], list[str]], tasks: list[Task]) -> list[str]:
    by_name = {task.name: f"{100 * task.chance:.1f}" for task in tasks}
    return [text for side in sides if side for text in [*(by_name[name] for name in side), ""]]


def _accuracy(record: dict[str, Any] | None) -> str:
    return "-" if record is None else f"{100 * record['accuracy']:.1f} ({100 * record['error']:.1f})"


def _mean(records: list[dict[str, Any]], key: str) -> Number:
    return float(sum(record[key] * record["samples"] for record in records) / sum(r["samples"] for r in records))
