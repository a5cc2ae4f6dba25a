"""The embedded model is prunable as real ones are: what matters lies in the patches that show something."""

import pytest
import torch

import swiftvlm
from swiftvlm.evaluation.oracle import oracle
from swiftvlm.evaluation.scorers import score
from swiftvlm.evaluation.tasks import Sample, embedded_task
from swiftvlm.inputs.prompts import build_prompt
from swiftvlm.mini import load_mini, pool
from tests.mini.recorded import scores

COUNT = 10  # questions a task, of the quick subset's 50; `results/` has the whole


@pytest.fixture(scope="module")
def mini():
    """The embedded model and its processor."""
    return load_mini()


def kept(mini, sample: Sample) -> float:
    """The score of the answer when layers from the third on see only what is shown."""
    model, processor = mini
    prompt = build_prompt(processor, sample.question, 1)
    inputs = dict(processor(images=[sample.picture()], text=prompt, return_tensors="pt"))
    with torch.no_grad(), swiftvlm.prune(model, oracle([sample])) as trace:
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert trace.tokens_per_layer[2:] == (len(sample.shown),) * (model.config.text_config.num_hidden_layers - 2)
    return score(
        sample, processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    )


def test_the_oracle_keeps_what_is_shown():
    """By hand: a patch belongs to what is shown if any box of the scene covers part of it."""
    item, sample = pool.items("ref", 1)[0], embedded_task("ref", 1).samples[0]
    boxes = [thing.box for thing in item.scene.things] + [sign.box for sign in item.scene.signs]
    for patch in range(576):
        row, column = divmod(patch, 24)
        touched = any(
            box.left < 14 * column + 14
            and box.right > 14 * column
            and box.top < 14 * row + 14
            and box.bottom > 14 * row
            for box in boxes
        )
        assert (patch in sample.shown) == touched


@pytest.mark.parametrize("task", pool.TASKS)
def test_true_patches_are_enough(mini, task):
    """From layer 3 on only patches that show something: at least 90% of what all of them give, errors allowed for."""
    samples, known = embedded_task(task, COUNT).samples, scores()
    whole = sum(known[sample.key] for sample in samples)
    cut = sum(kept(mini, sample) for sample in samples)
    # One standard error of a share of a half among so few questions.
    assert cut >= 0.9 * whole - 0.5 * COUNT**0.5, (cut, whole)
