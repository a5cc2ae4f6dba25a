"""`swiftvlm plan`: what a method would do to a model of a given shape, without any weights."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import swiftvlm
from swiftvlm.cli.parse import known_methods, print_json, read_budget, read_method, read_shape
from swiftvlm.flops import exact_total, paper_total
from swiftvlm.plans import Number, Plan
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
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else.")] = False,
) -> None:
    """Tokens per layer, FLOPs and KV bytes of a method at a budget; no model is run.

    Example: swiftvlm plan --method swiftvlm --budget 192 --shape llava-1.5-7b
    """
    size = read_shape(shape)
    made = swiftvlm.plan(
        read_method(method, layers=layers), read_budget(budget), size, visual_tokens, text_tokens, preset
    )
    facts = describe(made, size, method)
    if json:
        print_json(facts)
    else:
        show(facts, made)


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
        bar = "█" * max(round(BAR * count / visual), 1 if count else 0)
        console.print(f"layers {first:>3} to {last:>3}  {count:>5}  {bar} {note}", soft_wrap=True)


def spans(made: Plan) -> list[tuple[int, int, int, str]]:
    """(first layer, last layer, visual tokens, note) of each stretch of layers, 1-based."""
    starts = [0, *(cut.after for cut in made.cuts), made.layers]
    notes = ["", *(f"{cut.kept} kept + {cut.merged} merged" if cut.merged else f"{cut.kept} kept" for cut in made.cuts)]
    counts = [made.visual, *(cut.total for cut in made.cuts)]
    stretches = zip(starts, starts[1:], counts, notes, strict=False)
    return [(start + 1, end, count, note) for start, end, count, note in stretches]


def _share(part: Number, whole: Number) -> str:
    return f"{100 * part / whole:.1f}%"
