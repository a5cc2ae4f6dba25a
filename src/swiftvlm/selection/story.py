"""One question on which other methods lose what it is about and bypass keeps it (the paper's figures 3 and 6)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from swiftvlm.amounts import Budget, Number
from swiftvlm.engine import prune
from swiftvlm.errors import BudgetError
from swiftvlm.evaluation import Sample, score
from swiftvlm.methods import Method, find_method
from swiftvlm.selection.explain import Asked, Explaining
from swiftvlm.shape import ModelShape
from swiftvlm.trace import Run, Trace

Story = dict[str, Any]


def tell_story(
    runner: Explaining, samples: Iterable[Sample], methods: Mapping[str, Method], budget: Number
) -> Story | None:
    """The first question that the whole model and the last method answer, and all others lose at the same budget.

    Lost: the answer is wrong, and the patch under the middle of what was asked is gone; the last method keeps it.
    None: there is no such question.
    """
    for sample in samples:
        one = runner.asked(sample)
        # Vanilla first: a question that it fails is put to no other method.
        if not sample.target or not _say(runner, one, find_method("vanilla"), None)["right"]:
            continue
        said = {name: _say(runner, one, method, budget) for name, method in methods.items()}
        *others, last = said.values()
        if last["right"] and last["holds"] and not any(other["right"] or other["holds"] for other in others):
            told = {"key": sample.key, "question": sample.question, "answer": sample.answer, "budget": budget}
            return told | {"target": list(sample.target), "box": sample.box, "said": said}
    return None


def meets(shape: ModelShape, method: Method, budget: Number, visual: int) -> bool:
    """Whether a method can meet the budget on pictures of `visual` tokens."""
    try:
        # Any number of text tokens: counts depend on the visual ones alone.
        method.plan(shape, visual, 16, budget)
    except BudgetError:
        return False
    return True


@torch.no_grad()
def _say(runner: Explaining, one: Asked, method: Method, budget: Budget) -> dict[str, Any]:
    """Words, whether they are right, whether the last stage kept a patch of what was asked, and the trace."""
    model: Any = runner.model
    # What acts before the language model must see the picture being encoded.
    inputs = one.inputs if method.reduction is None else runner.asked(one.sample, encoded=False).inputs
    with prune(runner.model, method, budget=budget) as trace:
        output = model.generate(**inputs, max_new_tokens=runner.longest([one.sample]), do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    words = runner.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    told = {"words": words, "right": bool(score(one.sample, words)), "holds": _holds(trace.last, one.sample)}
    return told | {"trace": Trace((trace.last,)).to_json()}


def _holds(run: Run, sample: Sample) -> bool:
    # No stage ran, so nothing is lost.
    if not run.kept:
        return True
    place = {slot: i for i, slot in enumerate(run.candidates[0][0].tolist())}
    return any(place[slot] in sample.target for slot in run.kept[-1][0].tolist())
