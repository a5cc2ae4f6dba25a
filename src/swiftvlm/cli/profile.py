"""`swiftvlm profile`: which layers know what matters, and the pruning layers that follow."""

import json as text
import re
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from swiftvlm.amounts import Number
from swiftvlm.cli.common import asked_tasks, check_out, header, open_model, rows_of, samples_of
from swiftvlm.cli.parse import ASKED, print_json
from swiftvlm.cli.report import progress
from swiftvlm.errors import SelectionError
from swiftvlm.evaluation import Journal, Task, user_tasks
from swiftvlm.profiles import LayerProfile, own_folder, profile_for
from swiftvlm.scenes import TASKS
from swiftvlm.selection import Choice, Profile, Profiling, curve, knee, profile_of, rated, records, steps, unevenness
from swiftvlm.shape import ModelShape


def profile(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id (default: the embedded model).")
    ] = None,
    tasks: Annotated[str, typer.Option(help=f"Some of: {','.join(TASKS)}.")] = ",".join(TASKS),
    data: Annotated[Path | None, typer.Option(help="Your own questions instead: a JSONL file.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Questions a task.")] = 200,
    share: Annotated[float, typer.Option(help="V: fraction of visual tokens a layer keeps.")] = 0.2,
    choose: Annotated[int | None, typer.Option(min=1, help="Pruning layers to choose (the knee if absent).")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers at once.")] = 16,
    out: Annotated[Path, typer.Option(help="Result file; a run that was stopped goes on.")] = Path("profile.json"),
    save: Annotated[bool, typer.Option("--save", help="Let SwiftVLM() use these layers for this model.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else.")] = False,
) -> None:
    """Measure the profile of a model's layers and choose pruning layers from it, resumable layer by layer.

    Example: swiftvlm profile --samples 20 --tasks ref,text --choose 3
    """
    check_out(out)
    # Layers are chosen on the training pool: on the test pool they would be tuned to what they are judged by.
    wanted = user_tasks(data) if data else asked_tasks(tasks, samples, "train")
    # The embedded tasks are that short already; a user's file is as long as it is.
    wanted = [task.shortened(samples) for task in wanted]
    loaded, processor = open_model(model, dtype, device)
    shape = ModelShape.of(loaded)
    runner = Profiling(loaded, processor, batch, share)
    source = str(data) if data else "embedded, training pool"
    about = header(loaded, wanted, "profile") | {"share": share, "data": source}
    journal = Journal(out, about, must=("kind", "share", "data"))
    _announce(wanted, runner, journal)
    with progress("answering", len(runner.cells()) * len(samples_of(wanted))) as tell:
        runner.run(wanted, runner.cells(), journal, tell)
    found = profile_of(rows_of(journal, wanted), shape.layers)
    # Whatever can be chosen from it, what was measured is kept.
    journal.finish([describe(found, [rated(found.relative, ())])])
    chosen = _chosen(found, choose)
    facts = describe(found, chosen)
    journal.finish([facts])
    if save:
        facts["saved"] = str(_save(model or "embedded", shape, found, chosen, _birth(about)))
    if json:
        print_json(facts)
    else:
        show(facts, out)


def _announce(tasks: list[Task], runner: Profiling, journal: Journal) -> None:
    """What it will cost, before it costs."""
    asked = sum(len(task.samples) for task in tasks)
    total = asked * (runner.layers + 1)
    # With --json, stdout is for JSON alone.
    Console(stderr=True, highlight=False).print(
        f"{asked} questions, once whole and once for each of {runner.layers} layers: {total:,} answers"
        + (f", {len(journal.rows):,} of them there already" if journal.rows else ""),
        soft_wrap=True,
    )


def _chosen(found: Profile, stages: int | None) -> list[Choice]:
    """The best layers for 1, 2, ... stages, and last the one that is taken."""
    choices = list(curve(found.relative, runnable=True))
    taken = knee(found.relative, runnable=True) if stages is None else None
    if stages is not None and stages > len(choices):
        raise SelectionError(
            f"--choose {stages}: this profile has {len(choices)} layers that can follow each other "
            f"(records: {', '.join(map(str, records(found.relative)))})"
        )
    # The curve's n-th choice has n layers.
    return [*choices, taken or choices[(stages or 1) - 1]]


def describe(found: Profile, chosen: list[Choice]) -> dict[str, Any]:
    """Everything `profile` prints, as plain data."""
    *choices, taken = chosen
    return {
        "layers": taken.layers,
        "value": taken.value,
        "gains": taken.gains,
        "y": steps(found.relative, taken.layers),
        "choices": [choice.__dict__ for choice in choices],
        "relative": found.relative,
        "errors": found.errors,
        "unevenness": unevenness(found.relative).__dict__,
        "spread": found.spread,
        "by_spread": [choice.__dict__ for choice in _or_none(found.spread)],
        "tasks": found.tasks,
        "left_out": found.left_out,
    }


def _or_none(values: tuple[Number, ...]) -> tuple[Choice, ...]:
    # The other reading of the paper's figure 4 is told beside the first: that nothing follows from it is no failure.
    with suppress(SelectionError):
        return curve(values, runnable=True)
    return ()


def _save(name: str, shape: ModelShape, found: Profile, chosen: list[Choice], birth: dict[str, Any]) -> Path:
    made = LayerProfile(Path(name).name, "measured", chosen[-1].layers, shape, found.relative, birth)
    stem = re.sub(r"[^A-Za-z0-9.-]+", "-", made.name).lower()
    # The fingerprint keeps models of one name apart.
    path = own_folder() / f"{stem}-{birth['model'][:8]}.json"
    # Profiles are found by shape alone: of two models of one shape, one would be pruned at the other's layers. Shipped
    # ones are the user's to overrule.
    known = profile_for(shape, own_folder())
    if known is not None and known.source != "paper" and known.birth.get("model") != birth["model"]:
        raise SelectionError(
            f"{known.name} has measured layers for models of this shape; to save those of {made.name}, move its "
            f"profile out of {own_folder()}"
        )
    made.write(path)
    return path


def _birth(about: dict[str, Any]) -> dict[str, Any]:
    """With what a profile was measured."""
    told: dict[str, Any] = text.loads(text.dumps(about))
    return told | {"command": shlex.join(["swiftvlm", *ASKED.get()]), "commit": _commit()}


def _commit() -> str | None:
    """The commit of the library, where it runs from a checkout."""
    try:
        # In this file's folder: the user's own may be another repository.
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def show(facts: dict[str, Any], out: Path) -> None:
    """The profile and its layers in the terminal."""
    console = Console(highlight=False)
    table = Table("layer", "x", "±", "y", "", box=None)
    for column in table.columns[:4]:
        column.justify = "right"
    for i, (x, error, y) in enumerate(zip(facts["relative"], facts["errors"], facts["y"], strict=True), 1):
        gain = dict(zip(facts["layers"], facts["gains"], strict=True)).get(i)
        mark = "" if gain is None else f"  <- prune, +{gain:.3f}"
        bar = "#" * round(30 * max(0.0, min(1.0, x)))
        table.add_row(str(i), f"{x:.3f}", f"{error:.3f}", f"{y:.3f}", bar + mark)
    console.print(table)
    for choice in facts["choices"]:
        taken = "  <- taken" if choice["layers"] == facts["layers"] else ""
        console.print(f"{len(choice['layers'])} layers: P = {choice['value']:.3f}  {choice['layers']}{taken}")
    uneven = facts["unevenness"]
    if uneven["between"]:
        i, j = uneven["between"]
        told = f"{uneven['worse']} of {uneven['among']} layers know less than one before them"
        console.print(f"{told}; the deepest fall, {uneven['fall']:.3f}, is from layer {i} to layer {j}")
    for task in facts["left_out"]:
        console.print(f"{task} is left out: the model never answers it")
    if "saved" in facts:
        console.print(f"SwiftVLM() now prunes this model at {facts['layers']} ({facts['saved']})", soft_wrap=True)
    console.print(f"saved to {out}", soft_wrap=True)
