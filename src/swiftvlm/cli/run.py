"""`swiftvlm run`: one question about one or more images, pruned, and beside it unpruned."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import torch
import typer
from PIL import Image
from transformers import PreTrainedModel, TextStreamer

import swiftvlm
from swiftvlm.bench import Timing, time_pairs
from swiftvlm.cli.demo import ONLY_SCENES, demo
from swiftvlm.cli.parse import known_methods, print_json, read_budget, read_method
from swiftvlm.cli.report import facts_of, progress, show, write_picture
from swiftvlm.cli.saving import Writer, check_folder, save_all
from swiftvlm.errors import SwiftVLMError
from swiftvlm.inputs import System, build_prompt, check_question, load_checkpoint, open_image, pad_to_square, placed
from swiftvlm.mini import load_mini
from swiftvlm.trace import Trace

PAIRS, TIMED_TOKENS = 5, 8


@dataclass
class Session:
    """A loaded model with one prompt in front of it, and what became of it."""

    model: PreTrainedModel
    processor: Any
    images: list[Image.Image]
    inputs: dict[str, Any]
    trace: Trace = field(default_factory=Trace)
    answer: str = ""
    vanilla_answer: str | None = None
    timing: tuple[Timing, Timing] | None = None


def run(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE... QUESTION", help="Images ('-': stdin), a question.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id (default: the embedded model).")
    ] = None,
    method: Annotated[str, typer.Option(help=f"One of: {known_methods()}.")] = "swiftvlm",
    budget: Annotated[str | None, typer.Option(help="Average visual tokens (192) or a fraction (0.33).")] = None,
    preset: Annotated[str | None, typer.Option(help="A published setting by name, such as 192.")] = None,
    layers: Annotated[str | None, typer.Option(help="Pruning layers of swiftvlm, such as 3,11,15.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also answer unpruned, and time both.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    system: Annotated[
        str, typer.Option(help="'template' (the processor's) or 'vicuna' (LLaVA-1.5's own).")
    ] = "template",
    pad: Annotated[bool, typer.Option("--pad-to-square", help="Pad as LLaVA-1.5 was trained, do not crop.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")] = "auto",
    save: Annotated[Path | None, typer.Option(help="Folder for picture.png, trace.json and answer.txt.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random method.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else.")] = False,
) -> None:
    """Ask a question about images with visual tokens pruned.

    Without an image and --model, the embedded model shows three methods on a scene of its own.

    Example: swiftvlm run photo.jpg "What is on the sign?" --model llava-hf/llava-1.5-7b-hf --budget 192 --compare
    """
    if not arguments and model is None:
        demo(read_budget(budget), save, json)
        return
    # Everything that can be wrong without the model is found before minutes are spent on loading it.
    paths, question = _split(arguments or [])
    chosen, allowed = read_method(method, seed, layers), read_budget(budget)
    style = _system(system)
    check_question(question)
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise SwiftVLMError(f"--dtype is auto, float32, bfloat16 or float16, got {dtype!r}")
    if save is not None:
        check_folder(save)
    images = [open_image(path) for path in paths]
    loaded, processor = _load(model, dtype, device)
    session = _prepare(loaded, processor, images, question, style, pad)
    handle = swiftvlm.prune(loaded, chosen, budget=allowed, preset=preset)
    _answer(session, handle, compare, max_new_tokens, quiet=json)
    facts = facts_of(session.trace.last, session.answer, session.vanilla_answer, session.timing)
    if save is not None:
        save_all(save, _files(session))
    if json:
        print_json(facts)
    else:
        show(facts, save)


def _load(name: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    if name is None:
        typer.echo(f"swiftvlm: note: {ONLY_SCENES}", err=True)
        model, processor = load_mini()
        return placed(model, dtype, device), processor
    with progress(f"loading {name}"):
        return load_checkpoint(name, dtype, device)


def _split(arguments: list[str]) -> tuple[list[str], str]:
    if not arguments:
        raise SwiftVLMError("give at least one image and a question, got neither")
    *paths, question = arguments
    if not paths:
        raise SwiftVLMError(f"give at least one image and a question, got only {question!r}")
    if paths.count("-") > 1:
        raise SwiftVLMError(f"standard input holds one image, but '-' was given {paths.count('-')} times")
    return paths, question


def _system(name: str) -> System:
    if name in get_args(System):
        return cast(System, name)
    raise SwiftVLMError(f"--system is 'template' or 'vicuna', got {name!r}")


def _prepare(
    model: PreTrainedModel, processor: Any, images: list[Image.Image], question: str, system: System, pad: bool
) -> Session:
    if pad:
        mean = processor.image_processor.image_mean
        # The mean colour, which is about 0 once normalised; rounded down, as LLaVA's own padding is.
        red, green, blue = (int(255 * share) for share in mean)
        images = [pad_to_square(image, (red, green, blue)) for image in images]
    prompt = build_prompt(processor, question, len(images), system)
    # This `to` casts floating-point tensors only: ids stay ints.
    inputs = processor(images=images, text=prompt, return_tensors="pt").to(model.device, model.dtype)
    return Session(model, processor, images, dict(inputs))


def _answer(session: Session, handle: Any, compare: bool, most: int, quiet: bool) -> None:
    if compare and not quiet:
        typer.echo("pruned:   ", nl=False)
    with handle as trace:
        session.answer = _generate(session, most, quiet)
        # A copy: the timing below enters the same handle again, and its trace grows.
        session.trace = Trace(trace.runs)
    if not compare:
        return
    if not quiet:
        typer.echo("unpruned: ", nl=False)
    session.vanilla_answer = _generate(session, most, quiet)
    with progress("timing", PAIRS) as advance:
        session.timing = time_pairs(
            session.model,
            session.inputs,
            lambda: handle,
            pairs=PAIRS,
            new_tokens=min(most, TIMED_TOKENS),
            progress=advance,
        )


def _generate(session: Session, most: int, quiet: bool) -> str:
    tokenizer = session.processor.tokenizer
    # The answer appears as it is made; JSON must stay alone on stdout.
    streamer = None if quiet else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model: Any = session.model
    with torch.no_grad():
        output = model.generate(**session.inputs, max_new_tokens=most, do_sample=False, streamer=streamer)
    new = output[0, session.inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def _files(session: Session) -> dict[str, Writer]:
    answers = (
        session.answer
        if session.vanilla_answer is None
        else f"{session.answer}\n\n[unpruned]\n{session.vanilla_answer}"
    )
    run_ = session.trace.last

    # A function, since a lambda in the loop below would see the loop's last index.
    def picture(index: int) -> Writer:
        image = session.images[index]
        return lambda path: write_picture(
            path, session.model, session.processor, image, session.inputs, index, run_, session.answer
        )

    many = len(session.images) > 1
    return {
        **{f"picture-{i + 1}.png" if many else "picture.png": picture(i) for i in range(len(session.images))},
        "trace.json": _text(session.trace.to_json()),
        "answer.txt": _text(answers + "\n"),
    }


def _text(content: str) -> Writer:
    def write(path: Path) -> None:
        path.write_text(content)

    return write
