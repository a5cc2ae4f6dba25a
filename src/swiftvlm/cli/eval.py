"""`swiftvlm eval`: accuracy of methods at budgets, beside vanilla, on fixed questions."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from swiftvlm.amounts import Budget
from swiftvlm.budget import target_average
from swiftvlm.cli.common import asked_tasks, check_form, check_out, header, open_model, samples_of
from swiftvlm.cli.parse import known_methods, print_json, read_budget, read_method
from swiftvlm.cli.report import progress
from swiftvlm.errors import SwiftVLMError
from swiftvlm.evaluation import ORACLE, VANILLA, Cell, Evaluation, Journal, Task, summarize, table
from swiftvlm.figures import draw_accuracy
from swiftvlm.methods import Method, SwiftVLM
from swiftvlm.scenes import POOL_SIZE, QUICK_SIZE, TASKS

# Columns that no table of results reaches, so that measuring one never cuts it.
WIDEST = 1000
WITHOUT_BUDGET = (VANILLA, ORACLE)
METHODS = "vanilla,random,uniform,fastv,swiftvlm"


def evaluate(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id (default: the embedded model).")
    ] = None,
    anyres: Annotated[
        bool, typer.Option("--anyres", help="The embedded model as a LLaVA-NeXT, 1176 visual tokens.")
    ] = False,
    tasks: Annotated[str, typer.Option(help=f"Some of: {','.join(TASKS)}.")] = ",".join(TASKS),
    methods: Annotated[
        str, typer.Option(help=f"Some of: {known_methods()}, oracle; with fields, such as fastv:after=4.")
    ] = METHODS,
    budgets: Annotated[str, typer.Option(help="Average visual tokens, with commas.")] = "192,128,96",
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a task (all 500 if absent).")] = None,
    pool_name: Annotated[str, typer.Option("--pool", help="test, or train to tune on.")] = "test",
    quick: Annotated[bool, typer.Option("--quick", help=f"The first {QUICK_SIZE} questions a task.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Answers at once.")] = 16,
    layers: Annotated[str | None, typer.Option(help="Pruning layers of swiftvlm, such as 3,11,15.")] = None,
    out: Annotated[Path, typer.Option(help="Result file; a run that was stopped goes on from it.")] = Path("eval.json"),
    join: Annotated[
        list[Path] | None, typer.Option(help="Take over the rows of another result file (may be repeated).")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the random method.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="The summary as JSON on stdout and nothing else.")] = False,
) -> None:
    """Measure accuracy under pruning, resumable, every answer kept.

    Example: swiftvlm eval --quick --methods vanilla,fastv,swiftvlm --budgets 192 --out results/quick.json
    """
    # Before the model is loaded: all that can be wrong with the request alone.
    check_form(anyres, model)
    count = _limit(limit, quick)
    cells = _cells(methods, budgets, layers, seed)
    check_out(out)
    wanted = asked_tasks(tasks, count, pool_name)
    loaded, processor = open_model(model, dtype, device, anyres)
    asker = Evaluation(loaded, processor, batch)
    # Budgets out of reach become rows of dashes, not errors: the other cells are still worth measuring.
    floors = asker.floors(cells, wanted[0].samples[0])
    cells = [cell for cell in cells if cell.label not in floors]
    about = header(loaded, wanted, "eval") | {"pool": pool_name}
    journal = Journal(out, about, must=("kind", "pool"))
    # `swiftvlm@192` says nothing of layers: a file that has its answers at other layers is refused.
    journal.claim({cell.label: cell.described(asker.shape) for cell in cells})
    for path in join or []:
        _join(journal, path)
    summary = _answered(asker, wanted, cells, journal)
    draw_accuracy(summary).savefig(out.with_suffix(".png"), dpi=120)
    if json:
        print_json(summary)
    else:
        show(summary, wanted, floors, out)


def _answered(asker: Evaluation, tasks: list[Task], cells: list[Cell], journal: Journal) -> list[dict[str, Any]]:
    with progress("answering", len(cells) * len(samples_of(tasks))) as tell:
        asker.run(tasks, cells, journal, tell)
    # Of all cells in the file, those of earlier commands too: the summary replaces theirs.
    summary = summarize(journal.rows, list(dict.fromkeys(row["cell"] for row in journal.rows)))
    journal.finish(summary)
    return summary


def _join(journal: Journal, path: Path) -> None:
    if not path.is_file() and not path.with_name(path.name + ".part").is_file():
        raise SwiftVLMError(f"--join {path}: there is no such file")
    journal.join(Journal(path, journal.header, journal.must, borrowed=True))


def show(summary: list[dict[str, Any]], tasks: list[Task], floors: dict[str, str], out: Path) -> None:
    """Print the summary, why some cells are empty, what it took, and where it lies."""
    shown = table(summary, tasks, floors)
    # A table cut short would hide figures: it gets the width that it needs.
    console = Console(highlight=False, width=max(Console().width, Console(width=WIDEST).measure(shown).maximum))
    console.print(shown)
    for label, why in floors.items():
        console.print(f"{label}: {why}", soft_wrap=True)
    console.print(_seconds(summary), soft_wrap=True)
    console.print(f"saved to {out} and {out.with_suffix('.png')}", soft_wrap=True)


def _limit(limit: int | None, quick: bool) -> int:
    if quick and limit is not None:
        raise SwiftVLMError(f"give --quick or --limit {limit}, not both")
    return QUICK_SIZE if quick else POOL_SIZE if limit is None else limit


def _cells(methods: str, budgets: str, layers: str | None, seed: int) -> list[Cell]:
    """Every method at every budget; those with counts once; vanilla and the oracle, which have none, once and first."""
    # With their fields: `fastv` and `fastv:after=4` are two methods in one table.
    names = list(dict.fromkeys(name.strip() for name in methods.split(",")))
    limits = _limits(budgets)
    if layers is not None and SwiftVLM.name not in [name.split(":")[0] for name in names]:
        raise SwiftVLMError(f"--layers {layers!r} is for {SwiftVLM.name}, which is not among --methods {methods}")
    cells = [Cell(name, read_method("vanilla"), None) for name in WITHOUT_BUDGET if name in names]
    for name in names:
        if name not in WITHOUT_BUDGET:
            chosen = read_method(name, seed, layers if name.split(":")[0] == SwiftVLM.name else None)
            cells += _at(limits, name, chosen)
    # A method or budget that was asked for twice is one cell.
    return list({cell.label: cell for cell in cells}.values())


def _at(limits: list[Budget], name: str, method: Method) -> list[Cell]:
    if method.counts is not None:  # a budget of its own
        return [Cell(name, method, None)]
    return [Cell(f"{name}@{limit}", method, limit) for limit in limits]


def _limits(budgets: str) -> list[Budget]:
    limits = [read_budget(text.strip()) for text in budgets.split(",")]
    for limit in limits:
        target_average(limit, 1)  # wrong whatever the picture
    return limits


def _seconds(summary: list[dict[str, Any]]) -> str:
    """Wall clock a task, all methods together."""
    sums: dict[str, float] = {}
    for record in summary:
        sums[record["task"]] = sums.get(record["task"], 0.0) + record["seconds"]
    return "wall clock: " + ", ".join(f"{task} {seconds:.0f} s" for task, seconds in sums.items())
