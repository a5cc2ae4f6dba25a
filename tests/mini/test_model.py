"""The shipped weights: what they are, that they load plainly, and that they still answer as recorded."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

import swiftvlm
from swiftvlm.cli.app import main
from swiftvlm.errors import SwiftVLMError
from swiftvlm.evaluation.journal import Journal
from swiftvlm.evaluation.oracle import ORACLE, oracle
from swiftvlm.evaluation.run import Cell, Evaluation
from swiftvlm.evaluation.scorers import mean
from swiftvlm.inputs.prompts import build_prompt
from swiftvlm.methods import find_method
from swiftvlm.mini import load
from swiftvlm.mini.load import WEIGHTS, load_mini
from swiftvlm.mini.tasks import embedded_task
from swiftvlm.scenes import TASKS, pool
from swiftvlm.scenes.drawing import draw
from tests.mini.recorded import scores

COUNT = 12  # questions a task, of the quick subset's 50
pytestmark = pytest.mark.filterwarnings("ignore:no measured pruning layers")


@pytest.fixture(scope="module")
def mini():
    """The embedded model and its processor."""
    return load_mini()


def test_it_is_a_small_llava(mini):
    """LLaVA-1.5's parts, deep enough that three full layers do not eat a budget; shards small enough for any index."""
    model, _ = mini
    config = model.config
    assert config.model_type == "llava"
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (336, 14)
    assert config.vision_config.num_hidden_layers >= 8
    assert config.text_config.num_hidden_layers >= 24
    shards = list(WEIGHTS.glob("*.safetensors"))
    assert all(shard.stat().st_size <= 15 * 10**6 for shard in shards)
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 40 * 10**6
    for shard in shards:
        with safe_open(shard, "pt") as file:
            names = file.keys()
            assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}


def test_plain_transformers_loads_it(mini):
    """`from_pretrained` needs nothing of ours, and gives the same model."""
    plain = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    ours = mini[0].state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in plain.state_dict().items())
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the moon?"}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert prompt == "USER:<image> Where is the moon? ASSISTANT:"
    picture = pool.items("ref", 1)[0]
    inputs = processor(images=[draw(picture.scene)], text=prompt, return_tensors="pt")
    assert (inputs["input_ids"] == plain.config.image_token_id).sum() == 576


def test_missing_weights_are_told(monkeypatch, tmp_path):
    """An installation without weights says so."""
    monkeypatch.setattr(load, "WEIGHTS", tmp_path)
    with pytest.raises(SwiftVLMError, match="weights are not in"):
        load_mini()


def test_answers_are_as_recorded_and_true_patches_are_enough(mini, tmp_path):
    """On the first questions of every task: accuracy within three standard errors of the recorded one on the same;
    and where layers from the third on see only patches that show something, at least 90% of it, errors allowed for.
    """
    tasks, known = [embedded_task(name, COUNT) for name in TASKS], scores()
    journal = Journal(tmp_path / "x.json", {"model": "", "tasks": {}})
    cells = [Cell(name, find_method("vanilla"), None) for name in ("vanilla", ORACLE)]
    Evaluation(*mini, 16).run(tasks, cells, journal, lambda said: None)
    layers = mini[0].config.text_config.num_hidden_layers
    for task in tasks:
        rows = {(row["cell"], row["key"]): row for row in journal.rows if row["task"] == task.name}
        now, _ = mean([rows["vanilla", sample.key]["score"] for sample in task.samples])
        then, error = mean([known[sample.key] for sample in task.samples])
        assert abs(now - then) <= 3 * max(error, 0.02), task.name
        for sample in task.samples:
            seen = (2 * 576 + (layers - 2) * len(sample.shown)) / layers
            assert rows[ORACLE, sample.key]["tokens"] == pytest.approx(seen, abs=1e-3)
        # One standard error of a share of a half among so few questions.
        cut = sum(rows[ORACLE, sample.key]["score"] for sample in task.samples)
        assert cut >= COUNT * (0.9 * then) - 0.5 * COUNT**0.5, (task.name, cut, then)


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


def test_the_oracle_leaves_what_is_shown_layer_by_layer(mini):
    """A single prompt with its pixels: all tokens in the first two layers, what is shown in all others."""
    model, processor = mini
    sample = embedded_task("ref", 1).samples[0]
    prompt = build_prompt(processor, sample.question, 1)
    inputs = processor(images=[sample.picture()], text=prompt, return_tensors="pt")
    with swiftvlm.prune(model, oracle([sample])) as trace:
        model(**inputs)
    assert trace.tokens_per_layer == (576,) * 2 + (len(sample.shown),) * (
        model.config.text_config.num_hidden_layers - 2
    )


def test_the_demo(tmp_path, capsys):
    """`swiftvlm run` alone: one question, three answers at one budget, a picture."""
    assert main(["run", "--json", "--save", str(tmp_path / "demo")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [answer["method"] for answer in facts["answers"]] == ["vanilla", "fastv", "swiftvlm"]
    assert [answer["average_tokens"] <= 192 for answer in facts["answers"]] == [False, True, True]
    assert (tmp_path / "demo" / "answers.png").stat().st_size > 10_000
    assert main(["run", "--budget", "0.6"]) == 0
    assert "true: [" in capsys.readouterr().out


def test_a_picture_of_ones_own(tmp_path, capsys):
    """Given an image, the embedded model answers and says what it does not know."""
    draw(pool.items("ref", 1)[0].scene).save(tmp_path / "scene.png")
    assert main(["run", str(tmp_path / "scene.png"), "Where is the moon?", "--max-new-tokens", "4", "--json"]) == 0
    said = capsys.readouterr()
    assert "knows nothing but rendered scenes" in said.err
    assert json.loads(said.out)["visual_tokens"] == 576


def test_top_level_name():
    """`swiftvlm.load_mini` is the function."""
    assert swiftvlm.load_mini is load_mini
