"""Print result files of `swiftvlm eval` as the tables of README and docs, in Markdown, and put them there.

    python scripts/tables.py results/mini.json
    python scripts/tables.py results/mini.json --cells "vanilla; fastv@128 as FastV" --against swiftvlm@128
    python scripts/tables.py results/sweep.json --best
    python scripts/tables.py --fill README.md docs/results.md

The second form names rows, and adds paired differences to one cell on the same questions: points, with 95% intervals.
The third prints only the best cell of each method at each budget, by the mean over tasks of its accuracy relative to
vanilla. The last renews every table of some pages: what stands between `<!-- table: ARGUMENTS -->` and `<!-- end -->`.
"""

import argparse
import json
import re
import shlex
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from swiftvlm.evaluation.scorers import paired
from swiftvlm.evaluation.summary import VANILLA, summarize

SIDES = (("ref", "ref+", "refg"), ("text", "gqa", "pope"))
TWO_SIDED = 1.96  # standard errors of a 95% interval
TABLE = re.compile(r"(<!-- table: (.*?) -->\n).*?(\n<!-- end -->)", flags=re.DOTALL)
Record = dict[str, Any]
Records = dict[tuple[str, str], Record]  # by cell and task


def main() -> None:
    """Print, or fill pages."""
    parser = _parser()
    parser.add_argument("--fill", nargs="+", type=Path, default=[], help="pages whose tables are renewed")
    asked = parser.parse_args()
    if not asked.fill and not asked.files:
        parser.error("give result files, or pages behind --fill")
    for page in asked.fill:
        page.write_text(filled(page.read_text()))
    if not asked.fill:
        print("\n".join(lines_of(asked)))


def filled(text: str) -> str:
    """A page with its tables renewed."""

    def renewed(found: re.Match[str]) -> str:
        return found[1] + "\n".join(lines_of(_parser().parse_args(shlex.split(found[2])))) + found[3]

    return TABLE.sub(renewed, text)


def lines_of(asked: argparse.Namespace) -> list[str]:
    """The table that some arguments ask for."""
    if asked.kept:
        return kept(json.loads(asked.files[0].read_text())["kept"])
    rows, records = read(tuple(asked.files))
    tasks = [task for task in (task for side in SIDES for task in side) if any(task == other for _, other in records)]
    names = dict.fromkeys(cell for cell, _ in records)
    parts = [cell.strip().partition(" as ") for cell in asked.cells.split(";")] if asked.cells else []
    shown = {cell: label or cell for cell, _, label in parts} if parts else {cell: cell for cell in names}
    for cell in (*shown, *([asked.against] if asked.against else [])):
        if cell not in names:
            raise SystemExit(f"{cell}: there is no such cell; there are {', '.join(names)}")
    shown = {cell: shown[cell] for cell in best(records, list(shown))} if asked.best else shown
    if asked.against in shown and shown[asked.against] == asked.against:
        shown[asked.against] = f"**{asked.against}**"
    lines = table(records, shown, tasks)
    if asked.against:
        more = differences(rows, list(shown), asked.against, asked.called or asked.against, tasks)
        lines = [line + added for line, added in zip(lines, more, strict=True)]
    return lines


@lru_cache
def read(files: tuple[Path, ...]) -> tuple[list[Record], Records]:
    """All rows of some result files, none twice, and their summary."""
    rows: dict[tuple[str, str], Record] = {}
    for file in files:
        for row in json.loads(file.read_text())["rows"]:
            rows.setdefault((row["cell"], row["key"]), row)
    every: list[Any] = list(rows.values())
    summary = summarize(every, list(dict.fromkeys(row["cell"] for row in every)))
    return every, {(record["cell"], record["task"]): record for record in summary}


def table(records: Records, shown: dict[str, str], tasks: list[str]) -> list[str]:
    """One line a cell: accuracy in %, each side relative to vanilla on the same questions, tokens and GFLOPs."""
    sides = [[task for task in side if task in tasks] for side in SIDES]
    heads = [name for side in sides if side for name in (*(f"`{task}`" for task in side), "avg")]
    lines = ["| | " + " | ".join([*heads, "tokens", "GFLOPs"]) + " |", "|---" * (len(heads) + 3) + "|"]
    for cell, label in shown.items():
        told = []
        for side in filter(None, sides):
            mine = [records[cell, task] for task in side]
            told += [f"{100 * record['accuracy']:.0f}" for record in mine]
            told.append("" if cell == VANILLA else f"{100 * _mean(mine, 'relative'):.0f}%")
        every = [record for (name, _), record in records.items() if name == cell]
        tokens, flops = _mean(every, "tokens"), _mean(every, "flops")
        lines.append(f"| {label} | " + " | ".join([*told, f"{tokens:.0f}", f"{flops / 1e9:.1f}"]) + " |")
    return lines


def best(records: Records, cells: list[str]) -> list[str]:
    """Of each method at each budget the cell of the highest mean relative accuracy; the first of equals."""
    found: dict[tuple[str, str], tuple[float, str]] = {}
    for cell in cells:
        name, _, budget = cell.rpartition("@")
        mine = [record for (other, _), record in records.items() if other == cell]
        share, key = _mean(mine, "relative") if name else 0.0, (name.split(":")[0], budget)
        if name and (key not in found or share > found[key][0]):
            found[key] = (share, cell)
    return [cell for _, cell in found.values()]


def kept(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """What `scripts/kept.py` found: one line a method, the shares of each task side by side."""
    tasks = {task: list(shares) for task, shares in next(iter(found.values())).items()}
    heads = [
        f"`{task}`: {share}" if not i else share for task, shares in tasks.items() for i, share in enumerate(shares)
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for method, told in found.items():
        figures = [f"{100 * value:.0f}%" for shares in told.values() for value in shares.values()]
        lines.append(f"| {method} | " + " | ".join(figures) + " |")
    return lines


def differences(rows: list[Record], cells: list[str], base: str, called: str, tasks: list[str]) -> list[str]:
    """Two more columns: each cell minus the base, on the questions that both answered."""
    scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)  # (cell, task) -> question -> score
    for row in rows:
        scores[row["cell"], row["task"]][row["key"]] = row["score"]
    lines = [f" boxes - {called} | others - {called} |", "---|---|"]
    for cell in cells:
        told = []
        for side in SIDES:
            pairs = [
                (scores[cell, task][key], scores[base, task][key])
                for task in side
                if task in tasks
                for key in scores[cell, task]
                if key in scores[base, task]
            ]
            gap, error = paired([one for one, _ in pairs], [other for _, other in pairs])
            told.append("" if cell == base else f"{100 * gap:+.1f} ±{100 * TWO_SIDED * error:.1f}")
        lines.append(f" {told[0]} | {told[1]} |")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="result files")
    parser.add_argument("--cells", help='cells by name, with semicolons, "NAME as LABEL"; all of them otherwise')
    parser.add_argument("--against", help="the cell to subtract")
    parser.add_argument("--called", help="what that cell is called in the columns' heads")
    parser.add_argument("--kept", action="store_true", help="the file is one of scripts/kept.py")
    parser.add_argument("--best", action="store_true", help="the best cell of each method and budget")
    return parser


def _mean(records: list[Record], key: str) -> float:
    return float(sum(record[key] for record in records) / len(records))


if __name__ == "__main__":
    main()
