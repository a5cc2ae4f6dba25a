"""Print result files of `swiftvlm eval` as the tables of README and docs, in Markdown, and put them there.

    python scripts/tables.py results/mini.json
    python scripts/tables.py results/mini.json --cells "vanilla; fastv@128 as FastV" --against swiftvlm@128
    python scripts/tables.py results/sweep.json --best
    python scripts/tables.py --fill README.md docs/results.md

The second form names rows, and adds paired differences to one cell on the same questions: points, with 95% intervals.
The third prints only the best cell of each method at each budget, by the mean over tasks of its accuracy relative to
vanilla. The last renews every table of some pages: what stands between `<!-- table: ARGUMENTS -->` and `<!-- end -->`,
files named from the repository's root. Of every task only questions that all cells of a table answered count.
"""

import argparse
import json
import re
import shlex
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from swiftvlm.evaluation import VANILLA, paired, summarize

SIDES = (("ref", "ref+", "refg"), ("text", "gqa", "pope"))
TWO_SIDED = 1.96  # standard errors of a 95% interval
ROOT = Path(__file__).parents[1]
MARK = "<!-- table: "
# From a mark to its own end: no other mark may stand between them.
TABLE = re.compile(rf"({MARK}([^\n]*) -->\n)(?:(?!{MARK}|<!-- end -->).)*(<!-- end -->)", flags=re.DOTALL)
Record = dict[str, Any]
Records = dict[tuple[str, str], Record]  # by cell and task


def main() -> None:
    """Print, or fill pages."""
    parser = _parser()
    parser.add_argument("--fill", nargs="+", type=Path, default=[], help="pages whose tables are renewed")
    asked = parser.parse_args()
    if bool(asked.fill) == bool(asked.files):
        parser.error("give either result files, or pages behind --fill")
    for page, text in [(page, filled(page.read_text())) for page in asked.fill]:
        page.write_text(text)
    if not asked.fill:
        print("\n".join(lines_of(asked)))


def filled(text: str) -> str:
    """A page with its tables renewed. Exits with an error if a mark has no end, or does not name a table."""

    def renewed(found: re.Match[str]) -> str:
        asked = _parser().parse_args(shlex.split(found[2]))
        asked.files = [ROOT / file for file in asked.files]
        return found[1] + "\n".join(lines_of(asked)) + "\n" + found[3]

    done, count = TABLE.subn(renewed, text)
    if count != text.count(MARK):
        raise SystemExit(f"{text.count(MARK)} marks {MARK!r}, but {count} with an end of their own")
    return done


def lines_of(asked: argparse.Namespace) -> list[str]:
    """The table that some arguments ask for."""
    if not asked.files:
        raise SystemExit("a table needs a result file")
    if asked.kept:
        return kept(json.loads(asked.files[0].read_text())["kept"])
    rows = read(tuple(asked.files))
    names = dict.fromkeys(row["cell"] for row in rows)
    parts = [cell.strip().partition(" as ") for cell in (asked.cells or "").split(";") if cell.strip()]
    shown = {cell: label or cell for cell, _, label in parts} if parts else {cell: cell for cell in names}
    needed = [*shown, *filter(None, [asked.against])]
    for cell in needed:
        if cell not in names:
            raise SystemExit(f"{cell}: there is no such cell; there are {', '.join(names)}")
    rows = common(rows, {*needed, VANILLA})
    tasks = [task for side in SIDES for task in side if any(row["task"] == task for row in rows)]
    records = {(record["cell"], record["task"]): record for record in summarize(rows, list(names))}
    shown = {cell: shown[cell] for cell in best(records, list(shown))} if asked.best else shown
    if asked.against in shown and shown[asked.against] == asked.against:
        shown[asked.against] = f"**{asked.against}**"
    lines = table(records, shown, tasks)
    if asked.against:
        more = differences(rows, list(shown), asked.against, asked.called or asked.against)
        lines = [line + added for line, added in zip(lines, more, strict=True)]
    return lines


@lru_cache
def read(files: tuple[Path, ...]) -> list[Record]:
    """All rows of some result files of one model and pool, none twice."""
    rows: dict[tuple[str, str], Record] = {}
    measured = set()
    for file in files:
        data = json.loads(file.read_text())
        measured.add(tuple(str(data["header"].get(key)) for key in ("model", "tasks", "pool")))
        for row in data["rows"]:
            rows.setdefault((row["cell"], row["key"]), row)
    if len(measured) > 1:
        raise SystemExit(f"{', '.join(map(str, files))}: measured with different models, tasks or pools: {measured}")
    return list(rows.values())


def common(rows: list[Record], cells: set[str]) -> list[Record]:
    """Rows of these cells on questions that all of them answered, of those that answered the task at all."""
    answered: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for row in rows:
        if row["cell"] in cells:
            answered[row["task"]].setdefault(row["cell"], set()).add(row["key"])
    shared = set[str]().union(*(set.intersection(*keys.values()) for keys in answered.values()))
    return [row for row in rows if row["cell"] in cells and row["key"] in shared]


def table(records: Records, shown: dict[str, str], tasks: list[str]) -> list[str]:
    """One line a cell: accuracy in %, each side relative to vanilla on the same questions, tokens and GFLOPs."""
    sides = [side for side in ([task for task in side if task in tasks] for side in SIDES) if side]
    heads = [name for side in sides for name in (*(f"`{task}`" for task in side), "avg")]
    lines = ["| | " + " | ".join([*heads, "tokens", "GFLOPs"]) + " |", "|---" * (len(heads) + 3) + "|"]
    for cell, label in shown.items():
        told = []
        for side in sides:
            mine = [records[cell, task] for task in side if (cell, task) in records]
            known = {record["task"]: f"{100 * record['accuracy']:.0f}" for record in mine}
            told += [known.get(task, "-") for task in side]
            told.append("" if cell == VANILLA else _share(mine))
        every = [record for (name, _), record in records.items() if name == cell]
        tokens, flops = _mean(every, "tokens"), _mean(every, "flops")
        lines.append(f"| {label} | " + " | ".join([*told, f"{tokens:.0f}", f"{flops / 1e9:.1f}"]) + " |")
    return lines


def best(records: Records, cells: list[str]) -> list[str]:
    """Of each method at each budget the cell of the highest mean relative accuracy; the first of equals.

    Cells without a budget, such as vanilla or counts of their own, are left out.
    """
    found: dict[tuple[str, str], tuple[float, str]] = {}
    for cell in cells:
        name, _, budget = cell.rpartition("@")
        mine = [record for (other, _), record in records.items() if other == cell and "relative" in record]
        share, key = _mean(mine, "relative") if name and mine else 0.0, (name.split(":")[0], budget)
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


def differences(rows: list[Record], cells: list[str], base: str, called: str) -> list[str]:
    """Two more columns: each cell minus the base, on the questions that both answered."""
    scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)  # (cell, task) -> question -> score
    for row in rows:
        scores[row["cell"], row["task"]][row["key"]] = row["score"]
    lines = [f" boxes - {called} | others - {called} |", "---|---|"]
    for cell in cells:
        told = ["" if cell == base else _gap(scores, cell, base, side) for side in SIDES]
        lines.append(f" {told[0]} | {told[1]} |")
    return lines


def _gap(scores: dict[tuple[str, str], dict[str, float]], cell: str, base: str, side: tuple[str, ...]) -> str:
    pairs = [
        (score, scores[base, task][key])
        for task in side
        for key, score in scores[cell, task].items()
        if key in scores[base, task]
    ]
    if not pairs:
        return "-"
    gap, error = paired([one for one, _ in pairs], [other for _, other in pairs])
    return f"{100 * gap:+.1f} ±{100 * TWO_SIDED * error:.1f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="result files")
    parser.add_argument("--cells", help='cells by name, with semicolons, "NAME as LABEL"; all of them otherwise')
    parser.add_argument("--against", help="the cell to subtract")
    parser.add_argument("--called", help="what that cell is called in the columns' heads")
    parser.add_argument("--kept", action="store_true", help="the file is one of scripts/kept.py")
    parser.add_argument("--best", action="store_true", help="the best cell of each method and budget")
    return parser


def _share(records: list[Record]) -> str:
    known = [record for record in records if "relative" in record]
    return f"{100 * _mean(known, 'relative'):.0f}%" if known else "-"


def _mean(records: list[Record], key: str) -> float:
    return float(sum(record[key] for record in records) / len(records))


if __name__ == "__main__":
    main()
