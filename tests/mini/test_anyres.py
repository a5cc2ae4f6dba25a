"""The embedded model as a LLaVA-NeXT: the same weights, a thumbnail and a tile."""

import json

import pytest
import torch

import swiftvlm
from swiftvlm.cli.app import main
from swiftvlm.evaluation.run import Evaluation
from swiftvlm.mini import load_mini
from swiftvlm.mini.anyres import load_mini_anyres
from swiftvlm.mini.tasks import embedded_task

pytestmark = pytest.mark.filterwarnings("ignore:no measured pruning layers")


@pytest.fixture(scope="module")
def tiled():
    """The model and its processor."""
    return load_mini_anyres()


def test_the_weights_are_the_embedded_models(tiled):
    """All of them, and a newline that is like what the model is given for the patches of a scene."""
    plain, processor = load_mini()
    mine = tiled[0].state_dict()
    newline = mine.pop("model.image_newline")
    assert mine.keys() == plain.state_dict().keys()
    assert all(torch.equal(weight, mine[name]) for name, weight in plain.state_dict().items())
    seen = processor.image_processor(images=[embedded_task("ref", 1).samples[0].picture()], return_tensors="pt")
    patches = plain.get_image_features(pixel_values=seen["pixel_values"], return_dict=True).pooler_output[0]
    assert torch.cosine_similarity(newline, patches.mean(0), dim=0) > 0.95
    assert float(newline.norm() / patches.norm(dim=-1).mean()) == pytest.approx(1, abs=0.2)


def test_pictures_encoded_once_give_the_same_answer(tiled):
    """Tiles are encoded with their pictures or before them: the same logits, and the plan's tokens are kept."""
    samples = embedded_task("ref", 2).samples
    asker = Evaluation(*tiled, 2)
    if not asker.shares_features:
        pytest.skip("this transformers encodes pictures inside generate only")
    features = asker._encode(list(samples))
    logits = []
    for encoded in (True, False):
        inputs = asker._inputs(samples, features, encoded=encoded)
        assert ("pixel_values" in inputs) != encoded
        with torch.no_grad(), swiftvlm.prune(tiled[0], "swiftvlm", budget=1 / 3) as trace:
            logits.append(tiled[0](**inputs).logits[:, -1])
        assert trace.tokens_per_layer[0] == 576 + 24 * 25
        assert trace.average_tokens <= 392
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_the_command_counts_tiles(tmp_path, capsys):
    """Budgets are of 1176 tokens; one that only 576 would allow is out of reach, as is what knows 576 places."""
    out = str(tmp_path / "next.json")
    asked = ["eval", "--anyres", "--tasks", "ref", "--limit", "1", "--methods", "oracle,uniform", "--out", out]
    assert main([*asked, "--budgets", "60,700,0.25"]) == 0
    shown = capsys.readouterr().out
    assert "uniform@60: a budget of 60 visual tokens on average cannot be reached" in shown
    assert "oracle: it knows the places of 576 patches, and here are 1176 visual tokens" in shown
    rows = {row["cell"]: row for row in json.loads((tmp_path / "next.json").read_text())["rows"]}
    assert {cell: row["tokens"] for cell, row in rows.items()} == pytest.approx(
        {"uniform@700": 700, "uniform@0.25": 294}, abs=1
    )
    assert rows["uniform@700"]["score"] == 1.0  # even so it sees: the box overlaps by half


def test_it_is_a_form_of_the_embedded_model(capsys):
    """Another model has tiles or has none."""
    assert main(["eval", "--anyres", "--model", "some/model"]) == 2
    assert "--anyres is a form of the embedded model" in capsys.readouterr().err
