"""The layer profile: what layers look at against the model's own attention, figures by hand, files, the command."""

import json
import math

import pytest
import torch

import swiftvlm
from swiftvlm import SwiftVLM, profiles
from swiftvlm.cli.app import main
from swiftvlm.errors import SelectionError, SwiftVLMError
from swiftvlm.evaluation.oracle import Listed
from swiftvlm.evaluation.user import user_tasks
from swiftvlm.profiles import LayerProfile, profile_for, read
from swiftvlm.scenes.drawing import draw
from swiftvlm.scenes.words import TEST
from swiftvlm.scenes.world import scene
from swiftvlm.selection.measure import Profiling, Watch, Watching, first, profile_of
from swiftvlm.shape import LLAVA_1_5_7B, ModelShape
from tests.support import IMAGE, LAYERS, batch_of, make_row, tiny

pytestmark = pytest.mark.filterwarnings("ignore:no measured pruning layers")


def two_rows(model):
    """A padded batch of two prompts with one image each."""
    return batch_of(model, [make_row(model, 0, text=9), make_row(model, 1, text=4)])


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_watches_see_what_the_model_attends_to(share):
    """Every layer's first tokens, the last layer's too, are those of the model's own attention maps."""
    model, eager = tiny(), tiny(attn="eager")
    inputs = two_rows(model)
    watches = tuple(Watch(share) for _ in range(LAYERS - 1))
    last = Watch(share, probe="next")
    with swiftvlm.prune(model, Watching(watches)) as trace:
        watched = model(**inputs).logits
    assert set(trace.tokens_per_layer) == {16}
    assert torch.equal(watched, model(**inputs).logits)
    with swiftvlm.prune(model, Watching((last,))):
        model(**inputs)
    maps = eager(**inputs, output_attentions=True).attentions
    for layer, watch in enumerate([*watches, last]):
        for row in range(2):
            visual = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
            shares = maps[layer][row, :, -1].mean(0)[visual]
            count = math.ceil(share * 16)
            expected = sorted(sorted(range(16), key=lambda i: (-float(shares[i]), i))[:count])
            assert list(watch.noted[row]) == expected, (layer, row)


def test_first_tokens_by_hand():
    """At least one, the share rounded up, ties to the earlier."""
    scores = torch.tensor([0.1, 0.4, 0.4, 0.2, 0.4])
    assert first(scores, 0.2) == (1,)
    assert first(scores, 0.4) == (1, 2)
    assert first(scores, 0.41) == (1, 2, 4)
    assert first(scores, 0.01) == (1,)
    assert first(scores[:0], 0.2) == ()


def test_listed_tokens_are_kept_row_by_row():
    """Rows of a batch keep what was told of each, however many; layers before see everything."""
    model = tiny()
    inputs = two_rows(model)
    with swiftvlm.prune(model, Listed(((0, 3, 15), (7,)), after=2)) as trace:
        model(**inputs)
    for row, places in enumerate([(0, 3, 15), (7,)]):
        visual = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
        assert trace.kept[0][row].tolist() == visual[list(places)].tolist()
    assert trace.per_row == ((16, 16, 3, 3, 3, 3, 3), (16, 16, 1, 1, 1, 1, 1))


def rows_of(task, vanilla, layers):
    """Rows of a task: scores of vanilla's answers and of each layer's."""
    every = {"vanilla": vanilla} | {f"layer {i}": scores for i, scores in enumerate(layers, 1)}
    return [{"task": task, "cell": cell, "score": float(s)} for cell, scores in every.items() for s in scores]


def test_profile_by_hand():
    """Two tasks of four questions, three layers; a task that vanilla never answers says nothing."""
    rows = rows_of("a", [1, 1, 1, 1], [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    rows += rows_of("b", [1, 1, 0, 0], [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    rows += rows_of("c", [0, 0, 0, 0], [[1, 0, 0, 0]] * 3)
    found = profile_of(rows, 3)
    assert found.relative == pytest.approx((0.5, 0.75, 1.0))  # (.5 + .5, 0 + 1.5, 1 + 1) / 2
    assert found.spread == pytest.approx(((0.5 + 0) / 2, (0 + 1) / 2, (1 + 0.5) / 2))
    assert found.left_out == ("c",)
    # Standard errors of 2 of 4 and 1 of 4: sqrt(1/3)/2 and 1/4; the second relative to vanilla's half.
    assert found.errors[0] == pytest.approx(math.hypot(math.sqrt(1 / 3) / 2, 0.25 / 0.5) / 2)
    with pytest.raises(SelectionError, match="task a has no answers of layer 4"):
        profile_of(rows, 4)
    with pytest.raises(SelectionError, match="answers nothing in c, even unpruned"):
        profile_of(rows_of("c", [0], [[1]]), 1)


def test_the_whole_profile_resumes(untrained, tmp_path, capsys):
    """Stopped after vanilla's answers and gone on, the command gives the rows of an undisturbed run."""
    base = ["profile", "--model", untrained, "--dtype", "float32", "--samples", "2", "--tasks", "pope,gqa"]
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    # An untrained model answers nothing, so nothing can be chosen; what was measured is kept.
    assert main([*base, "--out", str(whole)]) == 2
    assert "4 questions, once whole and once for each of 6 layers: 28 answers" in capsys.readouterr().err
    lines = whole.with_name("whole.json.part").read_text().splitlines(keepends=True)
    cut.with_name("cut.json.part").write_text("".join(lines[:4]))
    assert main([*base, "--out", str(cut)]) == 2
    assert "28 answers, 6 of them there already" in capsys.readouterr().err
    bare = [
        [{k: v for k, v in row.items() if k != "seconds"} for line in text.splitlines()[1:] for row in json.loads(line)]
        for text in ("".join(lines), cut.with_name("cut.json.part").read_text())
    ]
    assert sorted(map(str, bare[0])) == sorted(map(str, bare[1]))
    tokens = {row["cell"]: row["tokens"] for row in bare[0]}
    assert tokens["vanilla"] == 576
    assert tokens["layer 3"] == pytest.approx((2 * 576 + 4 * 116) / 6, abs=0.01)
    assert main([*base, "--share", "0.3", "--out", str(cut)]) == 2
    assert "another share (0.2, now 0.3)" in capsys.readouterr().err
    assert main([*base, "--share", "0", "--out", str(tmp_path / "y.json")]) == 2
    assert "in (0, 1]; got 0.0" in capsys.readouterr().err


def test_a_profile_is_shown_chosen_and_picked_up(untrained, tmp_path, capsys, monkeypatch):
    """The table, the layers, the saved file, and `SwiftVLM()` that uses it for this model from then on."""
    right = {"vanilla": 4, "layer 3": 2, "layer 5": 4}

    def fake(self, tasks, cells, journal, tell):
        for cell in cells:
            scores = [float(i < right.get(cell.label, 1)) for i in range(4)]
            keys = [sample.key for sample in tasks[0].samples]
            rows = zip(keys, scores, strict=False)
            journal.add([{"task": "pope", "cell": cell.label, "key": key, "score": score} for key, score in rows])

    monkeypatch.setattr(Profiling, "run", fake)
    base = ["profile", "--model", untrained, "--samples", "4", "--tasks", "pope"]
    assert main([*base, "--out", str(tmp_path / "a.json"), "--save"]) == 0
    shown = capsys.readouterr().out
    assert "SwiftVLM() now prunes this model at (3, 5)" in shown
    assert "5  1.000  0.000  1.000" in shown
    saved = read(next((tmp_path / "profiles").glob("*.json")))
    assert saved.layers == (3, 5)
    assert saved.birth["command"].startswith("swiftvlm profile --model ")
    assert [stage.after for stage in SwiftVLM().stages(saved.shape)] == [3, 4]
    assert [stage.after for stage in SwiftVLM(layers=(4, 6)).stages(saved.shape)] == [4, 5]
    # Another model of the same shape would never be found behind it.
    saved.write(tmp_path / "profiles" / "other.json")
    other = json.loads((tmp_path / "profiles" / "other.json").read_text())
    other["birth"]["model"] = "another"
    next((tmp_path / "profiles").glob("weights-*.json")).unlink()
    (tmp_path / "profiles" / "other.json").write_text(json.dumps(other))
    assert main([*base, "--out", str(tmp_path / "a.json"), "--save"]) == 2
    assert "has measured layers for models of this shape; to save those of weights" in capsys.readouterr().err
    # A shipped one is the user's to overrule.
    (tmp_path / "profiles" / "other.json").rename(tmp_path / "other.json")
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (tmp_path / "other.json").rename(shipped / "other.json")
    with monkeypatch.context() as patch:
        patch.setattr(profiles, "SHIPPED", shipped)
        assert profile_for(saved.shape).birth["model"] == "another"
        assert main([*base, "--out", str(tmp_path / "a.json"), "--save"]) == 0
        assert profile_for(saved.shape).birth["model"] == saved.birth["model"]
    capsys.readouterr()
    assert main([*base, "--out", str(tmp_path / "b.json"), "--choose", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    # Alone, both layers give the same area, and the earlier one is taken.
    assert (facts["layers"], facts["y"]) == ([3], [0.25, 0.25, 0.5, 0.5, 0.5, 0.5])
    assert main([*base, "--out", str(tmp_path / "c.json"), "--choose", "3"]) == 2
    assert "--choose 3: this profile has 2 layers that can follow each other (records: 3, 5)" in capsys.readouterr().err
    assert json.loads((tmp_path / "c.json").read_text())["rows"]


def test_profiles_on_disk(tmp_path, monkeypatch):
    """The published layers ship; a user's profile comes first; a broken one is told by name."""
    shipped = profile_for(LLAVA_1_5_7B)
    assert (shipped.layers, shipped.source) == ((3, 11, 15), "paper")
    assert profile_for(ModelShape(layers=31)) is None
    own = LayerProfile("mine", "measured", (4, 9), LLAVA_1_5_7B, (0.1, 0.2))
    own.write(tmp_path / "p" / "mine.json")
    monkeypatch.setenv("SWIFTVLM_PROFILES", str(tmp_path / "p"))
    assert profile_for(LLAVA_1_5_7B) == own
    assert [stage.after for stage in SwiftVLM().stages(LLAVA_1_5_7B)] == [4, 8]
    (tmp_path / "p" / "mine.json").write_text("{}")
    with pytest.raises(SelectionError, match=r"mine.json is no layer profile .*; remove it, or write it anew"):
        profile_for(LLAVA_1_5_7B)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"q.jsonl:2: no JSON \(.* at column 2\)"),
        ("[1]", "q.jsonl:2: a JSON object is expected, got list"),
        ('{"image": "a.png", "question": "?", "anwser": "x"}', "unknown field 'anwser'"),
        ('{"image": "a.png", "question": " ", "answer": "x"}', "question must be a text, got ' '"),
        ('{"image": "b.png", "question": "?", "answer": "x"}', "there is no image .*b.png"),
        ('{"image": "a.png", "question": "?"}', "give an answer or a box, and not both"),
        ('{"image": "a.png", "question": "?", "answer": 3}', "answer must be a text, got 3"),
        ('{"image": "a.png", "question": "?", "box": [1, 2]}', r"box must be four numbers, got \[1, 2\]"),
        ('{"image": "a.png", "question": "?", "box": [0.5, 0, 0.1, 1]}', "in shares of the picture's sides"),
        ('{"image": "a.png", "question": "?", "answer": "x", "id": "one"}', "two lines have the id 'q/one'"),
    ],
)
def test_malformed_lines_are_told(line, says, tmp_path):
    """Every wrong line is named with what is wrong, and nothing is measured."""
    draw(scene(TEST, 0)).save(tmp_path / "a.png")
    good = '{"image": "a.png", "question": "what is it?", "answer": "a picture", "id": "one"}\n'
    path = tmp_path / "q.jsonl"
    path.write_text(good + line + "\n")
    with pytest.raises(SwiftVLMError, match=says):
        user_tasks(path)


def test_own_questions(untrained, tmp_path, capsys):
    """A user's file is read, grouped by task, and answered; a missing or empty one is told."""
    draw(scene(TEST, 0)).save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "question": "what is it?", "answer": "a picture"},
        {"image": "a.png", "question": "where is it?", "box": [0, 0, 0.5, 1], "task": "where"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = user_tasks(path)
    assert [(task.name, task.localization, len(task.samples)) for task in found] == [
        ("q", False, 1),
        ("where", True, 1),
    ]
    assert found[1].samples[0].picture().size == (336, 336)
    # Answers belong to what was asked, not to a line's number; blanks around an answer are no part of it.
    path.write_text("\n".join(map(json.dumps, reversed([{**lines[0], "answer": " a picture "}, lines[1]]))))
    moved = {sample.question: sample for task in user_tasks(path) for sample in task.samples}
    assert moved["what is it?"].answer == "a picture"
    assert moved["where is it?"].key == found[1].samples[0].key
    out = str(tmp_path / "o.json")
    assert main(["profile", "--model", untrained, "--data", str(path), "--out", out]) == 2
    assert "answers nothing in q, where, even unpruned" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, says in (("empty.jsonl", "has no questions"), ("none.jsonl", "cannot be read")):
        with pytest.raises(SwiftVLMError, match=says):
            user_tasks(tmp_path / name)


def write_profile(path, share, values, model="one"):
    """What `swiftvlm split` reads of a result file."""
    path.write_text(json.dumps({"header": {"share": share, "model": model}, "summary": [{"relative": values}]}))


def test_layers_and_split_from_files(tmp_path, capsys):
    """Two profiles, one schedule within the budget, ready to be measured; what is missing or wrong is said."""
    for share, values in ((0.1, [0.1, 0.2, 0.4, 0.5, 0.9, 0.9]), (0.5, [0.6, 0.7, 0.8, 0.9, 1.0, 1.0])):
        write_profile(tmp_path / f"{share}.json", share, values)
    write_profile(tmp_path / "other.json", 0.3, [0.5] * 6, model="other")
    write_profile(tmp_path / "again.json", 0.5, [0.5] * 6)
    write_profile(tmp_path / "nan.json", 0.3, [float("nan")] * 6)
    files = [str(tmp_path / "0.1.json"), str(tmp_path / "0.5.json")]
    assert main(["split", *files, "--budget", "288", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["average"] <= 288
    method = SwiftVLM(layers=tuple(facts["layers"]), counts=tuple(facts["counts"]))
    assert swiftvlm.plan(method, None, ModelShape(layers=6), 576).average_tokens == facts["average"]
    assert main(["split", *files, "--budget", "288"]) == 0
    assert f"--methods {facts['method']}" in capsys.readouterr().out
    for wrong, message in (
        (files[:1], "two shares or more"),
        ([*files, "--budget", "9"], "cannot be met by 3 stages"),
        ([*files, str(tmp_path / "none.json")], "is no result file of swiftvlm profile"),
        ([*files, str(tmp_path / "other.json")], "other.json is of another model than"),
        ([*files, str(tmp_path / "again.json")], "both of share 0.5"),
        ([*files, str(tmp_path / "nan.json")], "is no result file of swiftvlm profile"),
        ([*files, "--merged-share", "1"], "a fraction in [0, 1)"),
    ):
        assert main(["split", *wrong]) == 2
        assert message in capsys.readouterr().err
