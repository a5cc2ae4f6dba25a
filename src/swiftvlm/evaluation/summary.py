"""Rows of answers as figures: one record a method, budget and task, compared with vanilla on the same samples."""

from collections import defaultdict
from typing import Any

from swiftvlm.evaluation.journal import Row
from swiftvlm.evaluation.scorers import f1, mean, paired

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
    scores = [row["score"] for row in rows]
    accuracy, error = mean(scores)
    record = {"task": task, "cell": cell, "samples": len(rows), "accuracy": accuracy, "error": error}
    record |= {key: mean([row[key] for row in rows])[0] for key in ("tokens", "flops", "kv_bytes")}
    # A sum, so that it adds up over tasks; tables divide it by `samples`.
    record["seconds"] = sum(row["seconds"] for row in rows)
    if cell != VANILLA:
        # A run that was stopped may have other questions than vanilla's: only common ones can be paired.
        record |= _compared([row for row in rows if row["key"] in whole], whole)
    if task == "pope":
        # A right `yes` and a wrong `no` both stand for a true yes.
        said = [row["answer"] == "yes" for row in rows]
        record["f1"] = f1(said, [yes == bool(right) for yes, right in zip(said, scores, strict=True)])
    return record


def _compared(rows: list[Row], whole: dict[str, Row]) -> dict[str, Any]:
    """The paired difference to vanilla, and the accuracy relative to it."""
    if not rows:
        return {}
    mine, theirs = [row["score"] for row in rows], [whole[row["key"]]["score"] for row in rows]
    change, doubt = paired(mine, theirs)
    # Where vanilla is never right, nothing can be said relative to it.
    share = {"relative": sum(mine) / sum(theirs)} if any(theirs) else {}
    return {"change": change, "change_error": doubt, **share}
