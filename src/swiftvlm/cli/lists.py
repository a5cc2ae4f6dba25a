"""`swiftvlm methods` and `swiftvlm families`: the two registries as tables."""

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swiftvlm.cli.parse import print_json
from swiftvlm.families import FAMILIES
from swiftvlm.methods import METHODS, NEEDS_WEIGHTS
from swiftvlm.shape import LLAVA_1_5_7B

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else.")]


def methods(json: Json = False) -> None:
    """All methods: what each does, what it follows, where it acts on 32 layers (0: before them), its presets.

    Example: swiftvlm methods --json
    """
    rows = [_method(name) for name in METHODS]
    if json:
        print_json(rows)
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    table.add_column("after layers", no_wrap=True)
    table.add_column("what it does; what it follows; presets")
    for row in rows:
        acts = ", ".join(map(str, row["acts_after"])) or "-"
        known = [row["paper"], row["source"], ", ".join(row["presets"])]
        told = "; ".join(part for part in known if part)
        table.add_row(row["name"], acts, Text(row["summary"]) + Text(f"\n{told}" if told else "", style="dim"))
    Console(highlight=False).print(table)
    print_trained()


def print_trained() -> None:
    """What the field also names, and why it is not here."""
    names = ", ".join(f"{name} ({paper})" for name, paper in NEEDS_WEIGHTS.items())
    Console(highlight=False).print(f"Need trained weights, so none is built in (docs/adding.md has the hook): {names}")


def _method(name: str) -> dict[str, Any]:
    kind = METHODS[name]
    method = kind()
    stages = method.stages(LLAVA_1_5_7B)
    return {
        "name": name,
        "summary": kind.summary,
        "paper": kind.paper,
        "source": kind.source,
        "acts_after": [*([0] if method.reduction else []), *(stage.after for stage in stages)],
        "presets": list(kind.presets),
    }


def families(json: Json = False) -> None:
    """All model families, the model types each serves, and the first layer after which it can be cut.

    Example: swiftvlm families
    """
    rows: list[dict[str, Any]] = [
        {"name": family.name, "model_types": list(family.model_types), "first_stage": family.first_stage}
        for family in FAMILIES.values()
    ]
    if json:
        print_json(rows)
        return
    table = Table("family", "model types", "can be cut after layer")
    for row in rows:
        table.add_row(str(row["name"]), ", ".join(row["model_types"]), str(row["first_stage"]))
    Console(highlight=False).print(table)
