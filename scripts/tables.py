"""Print a result file of `swiftvlm eval` as the README's tables, in Markdown.

    python scripts/tables.py results/mini.json
    python scripts/tables.py results/mini.json --against 'swiftvlm@128' --cells 'fastv@128,fastv:after=4@128'

The second form gives paired differences to one cell on the same questions: points, with 95% intervals.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from swiftvlm.evaluation.scorers import paired

SIDES = (("ref", "ref+", "refg"), ("text", "gqa", "pope"))
TWO_SIDED = 1.96  # standard errors of a 95% interval
Scores = dict[tuple[str, str], dict[str, float]]  # (cell, task) -> question -> score


def main() -> None:
    """Read, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="result file")
    parser.add_argument("--cells", help="cells by name, with commas; all of them otherwise")
    parser.add_argument("--against", help="the cell to subtract")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(asked.file.read_text())["rows"]
    scores: Scores = defaultdict(dict)
    for row in rows:
        scores[row["cell"], row["task"]][row["key"]] = row["score"]
    cells = asked.cells.split(",") if asked.cells else list(dict.fromkeys(row["cell"] for row in rows))
    print("\n".join(differences(scores, cells, asked.against) if asked.against else table(scores, cells, rows)))


def table(scores: Scores, cells: list[str], rows: list[dict[str, Any]]) -> list[str]:
    """One line a cell: accuracy in %, each side relative to vanilla on the same questions, tokens and GFLOPs."""
    heads = [name for side in SIDES for name in (*(f"`{task}`" for task in side), "avg")]
    lines = ["| | " + " | ".join([*heads, "tokens", "GFLOPs"]) + " |", "|---" * (len(heads) + 3) + "|"]
    for cell in cells:
        told = []
        for side in SIDES:
            told += [f"{100 * _mean(scores[cell, task]):.0f}" for task in side]
            told.append("" if cell == "vanilla" else f"{_relative(scores, cell, side):.0f}%")
        mine = [row for row in rows if row["cell"] == cell]
        tokens, flops = (sum(row[key] for row in mine) / len(mine) for key in ("tokens", "flops"))
        lines.append(f"| {cell} | " + " | ".join([*told, f"{tokens:.0f}", f"{flops / 1e9:.1f}"]) + " |")
    return lines


def differences(scores: Scores, cells: list[str], base: str) -> list[str]:
    """Each cell minus the base, on the questions that both answered."""
    lines = [f"| minus {base} | boxes | others |", "|---|---|---|"]
    for cell in cells:
        told = []
        for side in SIDES:
            pairs = [
                (scores[cell, task][key], scores[base, task][key])
                for task in side
                for key in scores[cell, task]
                if key in scores[base, task]
            ]
            gap, error = paired([one for one, _ in pairs], [other for _, other in pairs])
            told.append(f"{100 * gap:+.1f} ±{100 * TWO_SIDED * error:.1f}")
        lines.append(f"| {cell} | {told[0]} | {told[1]} |")
    return lines


def _mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _relative(scores: Scores, cell: str, side: tuple[str, ...]) -> float:
    """Percent of vanilla, mean over tasks."""
    shares = []
    for task in side:
        keys = [key for key in scores[cell, task] if key in scores["vanilla", task]]
        mine, whole = (sum(scores[name, task][key] for key in keys) for name in (cell, "vanilla"))
        shares.append(100 * mine / whole)
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()
