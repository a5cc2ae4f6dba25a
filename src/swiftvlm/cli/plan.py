"""`swiftvlm plan`: what a method would do to a model of a given shape, without any weights."""

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import swiftvlm
from swiftvlm.amounts import Budget, Number
from swiftvlm.budget import target_average
from swiftvlm.cli.parse import known_methods, print_json, read_budget, read_method, read_shape
from swiftvlm.errors import BudgetError, MethodError, SwiftVLMError
from swiftvlm.flops import exact_total, paper_total
from swiftvlm.methods import METHODS, Vanilla
from swiftvlm.plans import Plan
from swiftvlm.shape import ModelShape

BAR = 48  # columns of the longest bar


def plan(
    method: Annotated[str, typer.Option(help=f"One of: {known_methods()}.")] = "swiftvlm",
    budget: Annotated[str | None, typer.Option(help="Average visual tokens (192) or a fraction (0.33).")] = None,
    preset: Annotated[str | None, typer.Option(help="A published setting by name, such as 192.")] = None,
    layers: Annotated[str | None, typer.Option(help="Pruning layers of swiftvlm, such as 3,11,15.")] = None,
    shape: Annotated[str, typer.Option(help="llava-1.5-7b, llava-1.5-13b, or a config file.")] = "llava-1.5-7b",
    visual_tokens: Annotated[int, typer.Option(help="Visual tokens of the prompt.")] = 576,
    text_tokens: Annotated[int, typer.Option(help="All other tokens of the prompt.")] = 70,
    every: Annotated[bool, typer.Option("--all", help="All methods side by side.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else.")] = False,
) -> None:
    """Tokens per layer, FLOPs and KV bytes of a method at a budget; no model is run.

    Example: swiftvlm plan --method swiftvlm --budget 192 --shape llava-1.5-7b
    """
    size = read_shape(shape)
    if every:
        if preset is not None or layers is not None:
            raise SwiftVLMError("--all compares methods at one --budget; leave --preset and --layers out")
        _show_all(size, read_budget(budget), visual_tokens, text_tokens, json)
        return
    made = swiftvlm.plan(
        read_method(method, layers=layers), read_budget(budget), size, visual_tokens, text_tokens, preset
    )
    facts = describe(made, size, method)
    if json:
        print_json(facts)
    else:
        show(facts, made)


def _show_all(shape: ModelShape, budget: Budget, visual_tokens: int, text_tokens: int, json: bool) -> None:
    rows = _all(shape, budget, visual_tokens, text_tokens)
    if json:
        print_json(rows)
        return
    told = "each method's first preset" if budget is None else f"budget {budget}"
    heads = ("tokens", "at output", "TFLOPs", "paper's", "KV MiB")
    table = Table(title=told, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("method", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("stages")
    for row in rows:
        table.add_row(*_line(row))
    console = Console(highlight=False)
    console.print(table)
    # Below, not in a column that would make the others narrow.
    for row in rows:
        if "error" in row:
            console.print(f"{row['method']}: {row['error']}", soft_wrap=True)


def _all(shape: ModelShape, budget: Budget, visual_tokens: int, text_tokens: int) -> list[dict[str, Any]]:
    """Every method at a budget, or why it cannot meet it; vanilla, which has none, to compare with."""
    rows = []
    # What no method could take is one error here, not the same line for each of them below.
    swiftvlm.plan(Vanilla(), None, shape, visual_tokens, text_tokens)
    if budget is not None:
        target_average(budget, visual_tokens)
    for name, kind in METHODS.items():
        try:
            limit = None if name == Vanilla.name else budget
            made = swiftvlm.plan(kind(), limit, shape, visual_tokens, text_tokens)
        except (BudgetError, MethodError) as error:
            rows.append({"method": name, "error": str(error)})
        else:
            rows.append(describe(made, shape, name))
    return rows


def _line(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["method"], *["-"] * 6]
    stages = [f"{cut['after']}: {cut['kept']}" + f"+{cut['merged']}" * bool(cut["merged"]) for cut in row["stages"]]
    return [
        row["method"],
        f"{row['average_tokens']:.1f}",
        f"{row['average_at_output']:.1f}",
        f"{row['flops'] / 1e12:.2f}",
        f"{row['paper_flops'] / 1e12:.2f}",
        f"{row['kv_bytes'] / 2**20:.0f}",
        ", ".join(stages) or "-",
    ]


def describe(made: Plan, shape: ModelShape, method: str) -> dict[str, Any]:
    """Everything `plan` prints, as plain data; bytes are for 2-byte values."""
    whole = Plan(made.layers, made.visual, made.text)
    totals = {name: tuple(int(count) for count in p.all_tokens_per_layer) for name, p in (("p", made), ("w", whole))}
    return {
        "method": method,
        "visual_tokens": made.visual,
        "text_tokens": made.text,
        "tokens_per_layer": made.tokens_per_layer,
        "stages": [{"after": cut.after, "kept": cut.kept, "merged": cut.merged} for cut in made.cuts],
        "average_tokens": made.average_tokens,
        "average_at_output": made.average_at_output,
        "flops": exact_total(shape, made),
        "vanilla_flops": exact_total(shape, whole),
        "paper_flops": paper_total(shape, made),
        "vanilla_paper_flops": paper_total(shape, whole),
        "kv_bytes": shape.kv_bytes(totals["p"]),
        "vanilla_kv_bytes": shape.kv_bytes(totals["w"]),
    }


def show(facts: dict[str, Any], made: Plan) -> None:
    """A table, and tokens per layer as bars."""
    console = Console(highlight=False)
    table = Table("", "pruned", "vanilla", "ratio", title=f"{facts['method']}, {made.visual} visual tokens")
    for column in table.columns[1:]:
        column.justify = "right"
    # A prompt without an image has no tokens to be a share of.
    visual = made.visual or 1
    table.add_row(
        "average tokens, layer input",
        f"{made.average_tokens:.1f}",
        str(made.visual),
        _share(made.average_tokens, visual),
    )
    table.add_row("average tokens, layer output", f"{made.average_at_output:.1f}", str(made.visual), "")
    for label, name, unit, scale in (
        ("FLOPs, 2 per multiply-add", "flops", "T", 1e12),
        ("FLOPs, the paper's unit", "paper_flops", "T", 1e12),
        ("KV cache, 2-byte values", "kv_bytes", "MiB", 2**20),
    ):
        mine, whole = facts[name], facts[f"vanilla_{name}"]
        table.add_row(label, f"{mine / scale:.2f} {unit}", f"{whole / scale:.2f} {unit}", _share(mine, whole))
    console.print(table)
    for first, last, count, note in spans(made):
        # However few, tokens show: only a stretch without any has no bar.
        bar = "█" * max(round(BAR * count / visual), 1 if count else 0)
        console.print(f"layers {first:>3} to {last:>3}  {count:>5}  {bar} {note}", soft_wrap=True)


def spans(made: Plan) -> list[tuple[int, int, int, str]]:
    """(first layer, last layer, visual tokens, note) of each stretch of layers, 1-based."""
    starts = [0, *(cut.after for cut in made.cuts), made.layers]
    notes = ["", *(f"{cut.kept} kept + {cut.merged} merged" if cut.merged else f"{cut.kept} kept" for cut in made.cuts)]
    counts = [made.visual, *(cut.total for cut in made.cuts)]
    stretches = zip(starts, starts[1:], counts, notes, strict=False)
    # A cut before the first layer leaves no stretch in front of it.
    return [(start + 1, end, count, note) for start, end, count, note in stretches if end > start]


def _share(part: Number, whole: Number) -> str:
    return f"{100 * part / whole:.1f}%"
