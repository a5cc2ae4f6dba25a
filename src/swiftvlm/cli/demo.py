"""`swiftvlm run` without an image: the embedded model on a scene of its test pool, three methods side by side."""

from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import swiftvlm
from swiftvlm.amounts import Budget, Number
from swiftvlm.cli.parse import print_json
from swiftvlm.cli.report import progress, scaled
from swiftvlm.cli.saving import check_folder, save_all
from swiftvlm.evaluation import Sample, score
from swiftvlm.figures import Answer, draw_answers
from swiftvlm.inputs import build_prompt, read_boxes
from swiftvlm.methods import find_method
from swiftvlm.mini import embedded_task, load_mini
from swiftvlm.scenes import QUICK_SIZE, items

METHODS = ("vanilla", "fastv", "swiftvlm")
BUDGET = 192
ONLY_SCENES = "the embedded model knows nothing but rendered scenes; give --model for a checkpoint that knows more"


def first_scene() -> Sample:
    """The first localization question of the test pool whose scene stands on a real photograph."""
    pool = items("ref", 50)
    index = next(i for i in count() if not pool[i].scene.background.startswith("texture:"))
    # A task's samples stand in the order of the pool's items.
    return embedded_task("ref", 50).samples[index]


def demo(budget: Budget, save: Path | None, json: bool) -> None:
    """Answer one question unpruned, with FastV and with SwiftVLM; print all three, save the picture."""
    limit = BUDGET if budget is None else budget
    if save is not None:
        check_folder(save)
    sample = first_scene()
    with progress("loading the embedded model"):
        model, processor = load_mini()
    picture = sample.picture()
    inputs = dict(processor(images=[picture], text=build_prompt(processor, sample.question, 1), return_tensors="pt"))
    answers = [_answer(model, processor, inputs, sample, name, limit) for name in METHODS]
    if save is not None:
        save_all(save, {"answers.png": lambda path: _save(path, picture, sample, answers)})
    if json:
        print_json({"question": sample.question, "true": sample.answer, "answers": [_plain(one) for one in answers]})
        return
    _show(sample, answers, save)


def _answer(model: Any, processor: Any, inputs: dict[str, Any], sample: Sample, name: str, budget: Number) -> Answer:
    # Vanilla has no stage that could meet a budget.
    with (
        torch.no_grad(),
        swiftvlm.prune(model, find_method(name), budget=None if name == "vanilla" else budget) as trace,
    ):
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    words = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    boxes = read_boxes(words)
    return Answer(name, words, boxes[0] if boxes else None, bool(score(sample, words)), trace.last)


def _save(path: Path, picture: Image.Image, sample: Sample, answers: list[Answer]) -> None:
    figure = draw_answers(picture, sample.question, sample.box, answers)
    figure.savefig(path, dpi=120, format="png")


def _plain(answer: Answer) -> dict[str, Any]:
    run = answer.run
    facts = {"method": answer.name, "answer": answer.words, "right": answer.right}
    return facts | {"average_tokens": run.average_tokens, "flops": run.flops, "kv_bytes": run.kv_bytes}


def _show(sample: Sample, answers: list[Answer], save: Path | None) -> None:
    table = Table("method", "answer", "", "tokens", "FLOPs", "KV cache", box=SIMPLE_HEAD)
    table.columns[1].no_wrap = True
    for answer in answers:
        run = answer.run
        facts = (f"{run.average_tokens:.1f}", scaled(run.flops, 1000, ""), scaled(run.kv_bytes, 1024, "B"))
        table.add_row(answer.name, answer.words, "right" if answer.right else "wrong", *facts)
    console = Console(highlight=False)
    console.print(f"embedded model, {sample.key}: {sample.question}  (true: {sample.answer})", soft_wrap=True)
    console.print(table)
    console.print(
        f"one question proves nothing: `swiftvlm eval --quick` asks {QUICK_SIZE} of each of six tasks", soft_wrap=True
    )
    if save is not None:
        console.print(f"saved to {save / 'answers.png'}", soft_wrap=True)
