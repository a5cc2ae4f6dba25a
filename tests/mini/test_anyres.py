"""The embedded model as a LLaVA-NeXT: the same weights, a thumbnail and a tile."""

import json

import pytest
import torch

import swiftvlm
from swiftvlm.cli.app import main
from swiftvlm.evaluation.run import Evaluation
from swiftvlm.evaluation.tasks import embedded_task
from swiftvlm.mini import load_mini
from swiftvlm.mini.anyres import load_mini_anyres

pytestmark = pytest.mark.filterwarnings("ignore:no measured pruning layers")


@pytest.fixture(scope="module")
def tiled():
    """The model and its processor."""
    return load_mini_anyres()


def test_the_weights_are_the_embedded_models(tiled):
    """All of them, and a newline that is as long as what the model is given for patches."""
    plain, _ = load_mini()
    mine = tiled[0].state_dict()
    newline = mine.pop("model.image_newline")
    assert mine.keys() == plain.state_dict().keys()
    assert all(torch.equal(weight, mine[name]) for name, weight in plain.state_dict().items())
    assert 0.8 < float(newline.norm()) < 1.2


def test_pictures_encoded_once_give_the_same_answer(tiled):
    """Tiles are encoded with their pictures or before them: the same logits, and the plan's tokens are kept."""
    samples = embedded_task("ref", 2).samples
    asker = Evaluation(*tiled, 2)
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
    """A budget is a share of 1176 tokens; one that 576 could not hold is met."""
    out = str(tmp_path / "next.json")
    asked = ["eval", "--anyres", "--tasks", "ref", "--limit", "1", "--methods", "uniform", "--out", out, "--json"]
    assert main([*asked, "--budgets", "700,0.25"]) == 0
    tokens = {record["cell"]: record["tokens"] for record in json.loads(capsys.readouterr().out)}
    assert tokens["uniform@700"] == pytest.approx(700, abs=1)
    assert tokens["uniform@0.25"] == pytest.approx(294, abs=1)


def test_it_is_a_form_of_the_embedded_model(capsys):
    """Another model has tiles or has none."""
    assert main(["eval", "--anyres", "--model", "some/model"]) == 2
    assert "--anyres is a form of the embedded model" in capsys.readouterr().err
