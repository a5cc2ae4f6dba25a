"""Print a result file of `swiftvlm eval` as the tables of README and docs/results.md, in Markdown.

    python scripts/tables.py results/mini.json
    python scripts/tables.py results/mini.json --against swiftvlm:layers=3/8/11@128 --cells vanilla,fastv@128,pdrop@192
    python scripts/tables.py results/sweep.json --best

The second form adds paired differences to one cell on the same questions: points, with 95% intervals. The third prints
only the best cell of each method at each budget, by the mean over tasks of its accuracy relative to vanilla.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from swiftvlm.evaluation.scorers import paired
from swiftvlm.evaluation.summary import VANILLA

SIDES = (("ref", "ref+", "refg"), ("text", "gqa", "pope"))
TWO_SIDED = 1.96  # standard errors of a 95% interval


def main() -> None:
    """Read, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="result file")
    parser.add_argument("--cells", help="cells by name, with commas; all of them otherwise")
    parser.add_argument("--against", help="the cell to subtract")
    parser.add_argument("--best", action="store_true", help="the best cell of each method and budget")
    asked = parser.parse_args()
    data: dict[str, list[dict[str, Any]]] = json.loads(asked.file.read_text())
    records = {(record["cell"], record["task"]): record for record in data["summary"]}
    cells = asked.cells.split(",") if asked.cells else list(dict.fromkeys(cell for cell, _ in records))
    cells = best(records, cells) if asked.best else cells
    lines = table(records, cells)
    if asked.against:
        lines = [line + more for line, more in zip(lines, differences(data["rows"], cells, asked.against), strict=True)]
    print("\n".join(lines))


def table(records: dict[tuple[str, str], dict[str, Any]], cells: list[str]) -> list[str]:
    """One line a cell: accuracy in %, each side relative to vanilla on the same questions, tokens and GFLOPs."""
    heads = [name for side in SIDES for name in (*(f"`{task}`" for task in side), "avg")]
    lines = ["| | " + " | ".join([*heads, "tokens", "GFLOPs"]) + " |", "|---" * (len(heads) + 3) + "|"]
    for cell in cells:
        told = []
        for side in SIDES:
            mine = [records[cell, task] for task in side]
            told += [f"{100 * record['accuracy']:.0f}" for record in mine]
            told.append("" if cell == VANILLA else f"{100 * _mean(mine, 'relative'):.0f}%")
        every = [record for (name, _), record in records.items() if name == cell]
        tokens, flops = _mean(every, "tokens"), _mean(every, "flops")
        lines.append(f"| {cell} | " + " | ".join([*told, f"{tokens:.0f}", f"{flops / 1e9:.1f}"]) + " |")
    return lines


def best(records: dict[tuple[str, str], dict[str, Any]], cells: list[str]) -> list[str]:
    """Of each method at each budget the cell of the highest mean relative accuracy; the first of equals."""
    found: dict[tuple[str, str], tuple[float, str]] = {}
    for cell in cells:
        name, _, budget = cell.rpartition("@")
        mine = [record for (other, _), record in records.items() if other == cell]
        share, key = _mean(mine, "relative") if name else 0.0, (name.split(":")[0], budget)
        if name and (key not in found or share > found[key][0]):
            found[key] = (share, cell)
    return [cell for _, cell in found.values()]


def differences(rows: list[dict[str, Any]], cells: list[str], base: str) -> list[str]:
    """Two more columns: each cell minus the base, on the questions that both answered."""
    scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)  # (cell, task) -> question -> score
    for row in rows:
        scores[row["cell"], row["task"]][row["key"]] = row["score"]
    if not any(cell == base for cell, _ in scores):
        raise SystemExit(
            f"--against {base}: there is no such cell; there are {', '.join({cell for cell, _ in scores})}"
        )
    lines = [f" boxes - {base} | others - {base} |", "---|---|"]
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
            told.append("" if cell == base else f"{100 * gap:+.1f} ±{100 * TWO_SIDED * error:.1f}")
        lines.append(f" {told[0]} | {told[1]} |")
    return lines


def _mean(records: list[dict[str, Any]], key: str) -> float:
    return float(sum(record[key] for record in records) / len(records))


if __name__ == "__main__":
    main()
