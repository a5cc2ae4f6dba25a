"""`swiftvlm explain`: the numbers behind bypass: whom layers rank first, whom it keeps, how well it aligns."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from swiftvlm.amounts import Number
from swiftvlm.cli.common import asked_tasks, check_out, header, open_model, rows_of, samples_of
from swiftvlm.cli.parse import print_json, read_budget, read_method
from swiftvlm.cli.report import progress
from swiftvlm.errors import SwiftVLMError
from swiftvlm.evaluation import Journal, Sample
from swiftvlm.methods import Method, SwiftVLM, scaled_layers
from swiftvlm.mini import embedded_task
from swiftvlm.scenes import POOL_SIZE, TASKS, VISUAL_TOKENS
from swiftvlm.selection import SHARES, Explaining, Story, meets, projected, summary_of, tell_story
from swiftvlm.shape import ModelShape


def explain(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id (default: the embedded model).")
    ] = None,
    tasks: Annotated[str, typer.Option(help=f"Some of: {','.join(TASKS)}.")] = "ref,text",
    samples: Annotated[int, typer.Option(min=1, help="Questions a task.")] = 100,
    budget: Annotated[str, typer.Option(help="Average visual tokens of the comparison.")] = "128",
    layers: Annotated[str | None, typer.Option(help="Pruning layers, such as 3,11,15.")] = None,
    story: Annotated[str, typer.Option(help="Budget of the story that figures lost and stages draw.")] = "192",
    methods: Annotated[str, typer.Option(help="Methods of the story; the last is the one that keeps.")] = (
        "fastv,pdrop,swiftvlm"
    ),
    story_of: Annotated[
        str | None,
        typer.Option(help="Where the story is looked for (default: in all that is asked): test/ref+/12, ..."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Result file; a run that was stopped goes on.")] = Path("explain.json"),
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="The summary as JSON on stdout and nothing else.")] = False,
) -> None:
    """Measure why bypass works: rankings of layers, what is kept of them, and how merged tokens stand for members.

    Example: swiftvlm explain --tasks text --samples 20 --budget 128 --layers 3,8,11
    """
    check_out(out)
    wanted, method = asked_tasks(tasks, samples), read_method("swiftvlm", layers=layers)
    limit, other = _budget("--budget", budget), _budget("--story", story)
    told_of = samples_of(wanted) if story_of is None else _named(story_of)
    named = {name.strip(): read_method(name.strip()) for name in methods.split(",")}
    loaded, processor = open_model(model, dtype, device)
    runner = Explaining(loaded, processor, _waiting(method, ModelShape.of(loaded)), limit)
    if not runner.swift.plan(runner.shape, VISUAL_TOKENS, 16, limit).cuts:
        raise SwiftVLMError(f"--budget {budget} prunes nothing: a picture has {VISUAL_TOKENS} visual tokens")
    able = _able(named | ({"swiftvlm": method} if "swiftvlm" in named else {}), runner, other)
    depths = [stage.after for stage in method.stages(runner.shape)]
    about = header(runner.model, wanted, "explain") | {"budget": limit, "after": depths}
    journal = Journal(out, about, must=("kind", "budget", "after"))
    asked = samples_of(wanted)
    with progress("explaining", len(asked)) as tell:
        runner.explain(asked, journal, tell)
    facts = summary_of(rows_of(journal, wanted), runner.shape.layers)
    facts["changes"] = _changes(runner, asked)
    facts["story"] = tell_story(runner, told_of, able, other)
    journal.finish([facts])
    if json:
        print_json(facts)
    else:
        show(facts, out)


def _waiting(method: Method, shape: ModelShape) -> SwiftVLM:
    """The method, if anything waits beside the layers. Raises `SwiftVLMError`."""
    layers = [stage.after for stage in method.stages(shape)]
    if not isinstance(method, SwiftVLM) or len(layers) < 2:
        raise SwiftVLMError(
            f"with one stage (here after layer {layers[0]}) nothing waits to come back; give two or more --layers, "
            f"such as {','.join(str(layer) for layer in scaled_layers(shape.layers))}"
        )
    return method


def _named(keys: str) -> list[Sample]:
    """Questions of the test pool by key. Raises `SwiftVLMError`."""
    found = []
    for key in keys.split(","):
        pool_name, task, number = (*key.strip().split("/"), "", "")[:3]
        if pool_name != "test" or task not in TASKS or not (number.isdecimal() and int(number) < POOL_SIZE):
            raise SwiftVLMError(f"--story-of {key}: a question is called test/TASK/NUMBER, such as test/ref+/12")
        found.append(embedded_task(task, int(number) + 1).samples[int(number)])
    return found


def _budget(option: str, text: str) -> Number:
    limit = read_budget(text)
    if limit is None:
        raise SwiftVLMError(f"{option} is a number of tokens or a fraction, got {text!r}")
    return limit


def _able(named: dict[str, Method], runner: Explaining, budget: Number) -> dict[str, Method]:
    """The methods that can meet the story's budget; the last one, which keeps what others lose, must be able."""
    able = {name: one for name, one in named.items() if meets(runner.shape, one, budget, VISUAL_TOKENS)}
    if list(named)[-1] not in able or len(able) < 2:
        raise SwiftVLMError(f"--story {budget}: of {', '.join(named)} only {', '.join(able) or 'none'} can meet it")
    return able


def _changes(runner: Explaining, asked: list[Sample]) -> dict[str, Any]:
    """Figure 7 on the first question: fine groups and coarse ones."""
    one = runner.asked(asked[0])
    return {str(share): projected(runner.changes(one, share)) for share in (SHARES[2], SHARES[0])}


def show(facts: dict[str, Any], out: Path) -> None:
    """What was found, in the terminal."""
    console = Console(highlight=False)
    kept = Table("task", "of the top", "drop", "bypass", "gain", box=SIMPLE_HEAD, title="kept by the last stage")
    for task, found in facts["kept of top"].items():
        for top in (key for key in found if key != "questions"):
            told = [f"{found[top][fate]['mean']:.3f} ±{found[top][fate]['error']:.3f}" for fate in found[top]]
            kept.add_row(task, f"{100 * float(top):.0f}%", *told)
    console.print(kept)
    names = ("mean error", "member error", "other error", "mean cosine", "other cosine")
    aligned = Table("merged share", "layers", *names, box=SIMPLE_HEAD, title="merged tokens against the unpruned model")
    for share, stages in facts["alignment"].items():
        for stage in stages:
            span = f"{stage['first'] + 1:.0f}-{stage['last']:.0f}"
            aligned.add_row(share, span, *(f"{stage[name]:.4f}" for name in names))
    console.print(aligned)
    story: Story | None = facts["story"]
    found_one = f"{story['key']}: {story['question']}" if story else "no question that only the last method answers"
    console.print(f"story: {found_one}", soft_wrap=True)
    console.print(f"saved to {out}", soft_wrap=True)
