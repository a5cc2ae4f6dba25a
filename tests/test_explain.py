"""What `swiftvlm explain` measures: changes against the unpruned model, overlaps by hand, the command, its figures."""

import json
from dataclasses import replace

import pytest
import torch

import swiftvlm
from swiftvlm import SwiftVLM
from swiftvlm.cli.app import main
from swiftvlm.errors import SelectionError
from swiftvlm.evaluation.tasks import Sample
from swiftvlm.figures.changes import draw_changes
from swiftvlm.figures.cost import draw_cost
from swiftvlm.figures.overlap import draw_overlap
from swiftvlm.figures.ranking import draw_ranking
from swiftvlm.figures.stages import draw_lost, draw_stages
from swiftvlm.inputs.checkpoint import load_checkpoint
from swiftvlm.methods import find_method
from swiftvlm.methods.fastv import FastV
from swiftvlm.mini.tasks import embedded_task
from swiftvlm.scenes.drawing import draw
from swiftvlm.scenes.words import TEST
from swiftvlm.scenes.world import scene
from swiftvlm.selection import story as stories
from swiftvlm.selection.alignment import Change, agreement, changes
from swiftvlm.selection.explain import Asked, Explaining, early_and_late, projected, summary_of
from swiftvlm.selection.overlap import early_against_late, kept_of_top, rankings
from swiftvlm.selection.story import tell_story
from swiftvlm.trace import Trace
from tests.support import IMAGE, LAYERS, batch_of, make_row, tiny

pytestmark = pytest.mark.filterwarnings("ignore:no measured pruning layers")
SWIFT = SwiftVLM(layers=(2, 4, 6), counts=(6, 3, 5, 2, 4))


def prompt(model, seed=0):
    """One prompt with one image of 16 visual tokens, unpadded."""
    return batch_of(model, [make_row(model, seed)])


def test_a_group_of_one_changes_as_its_member_does():
    """Where nothing is merged with anything, the pruned run is the whole one: no error at any stage."""
    model = tiny()
    alone = replace(SWIFT, counts=(6, 10, 5, 11, 4))
    found = changes(model, prompt(model), alone, None)
    assert [(change.first, change.last, len(change.merged)) for change in found] == [(2, 3, 10), (3, 5, 11)]
    for change in found:
        told = agreement(change)
        assert told["mean error"] < 1e-5
        assert told["member error"] < 1e-5
        assert told["mean cosine"] > 1 - 1e-5
        assert told["other error"] > 1e-3


def test_changes_are_differences_of_states():
    """Eq. 12 from recorded states: a merged token begins as its members' mean and ends in its anchor's place."""
    model = tiny()
    inputs = prompt(model, 3)
    whole = model(**inputs, output_hidden_states=True).hidden_states
    first, second = changes(model, inputs, SWIFT, None)
    assert (len(first.merged), len(first.members), len(second.members)) == (3, 10, 11)
    with swiftvlm.prune(model, SWIFT, record_states=(3,)) as trace:
        model(**inputs)
    visual = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    stay = {*trace.kept[0][0].tolist(), *trace.anchors[0][0].tolist()}
    present = [slot for slot in range(inputs["input_ids"].shape[1]) if slot not in visual or slot in stay]
    groups = trace.groups[0][0]
    for group, anchor in enumerate(trace.anchors[0][0].tolist()):
        members = trace.candidates[0][0][groups == group]
        began, ended = whole[2][0, members].mean(0), trace.states[3][0, present.index(anchor)]
        torch.testing.assert_close(first.merged[group], ended - began, atol=1e-5, rtol=0)
        change = whole[3][0, members] - whole[2][0, members]
        torch.testing.assert_close(first.members[first.groups == group], change, atol=1e-6, rtol=0)
        torch.testing.assert_close(first.means[group], change.mean(0), atol=1e-6, rtol=0)


def test_agreement_by_hand():
    """Two groups in two dimensions."""
    members = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    change = Change(3, 7, torch.tensor([[2.0, 0.0], [0.0, 1.0]]), members, torch.tensor([0, 0, 1]))
    assert change.means.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    told = agreement(change)
    assert told["mean error"] == pytest.approx((0 + 0.5) / 2)
    assert told["member error"] == pytest.approx((1 + 1 / 3 + 0.5) / 3)
    assert told["mean cosine"] == pytest.approx(1)
    assert told["other cosine"] == pytest.approx(0)


def test_methods_without_a_bypass_have_no_changes():
    """A merge for good stands for nobody who comes back."""
    model = tiny()
    for rest in ("drop", "merge"):
        assert changes(model, prompt(model), replace(SWIFT, rest=rest), None) == []


def test_figure_2_by_hand():
    """Of ten tokens the top tenth is one; the earlier layer's bottom half are its last five."""
    up, down = tuple(range(10)), tuple(reversed(range(10)))
    assert early_against_late([up, down, up]) == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert early_and_late(32) == (9, 20)
    assert early_and_late(24) == (7, 15)


def test_figure_8_against_the_model():
    """The last stage that chooses from everything keeps the whole model's first tokens of that layer."""
    model = tiny()
    inputs = prompt(model, 5)
    orders = rankings(model, inputs)
    assert len(orders) == LAYERS
    assert all(sorted(order) == list(range(16)) for order in orders)
    one_stage = SwiftVLM(layers=(3,), counts=(4,))
    with swiftvlm.prune(model, one_stage) as trace:
        model(**inputs)
    assert kept_of_top(trace.last, orders) == {"0.05": 1.0, "0.1": 1.0}
    # A bypass through groups of one loses nothing, so its last stage chooses as the whole model would.
    with swiftvlm.prune(model, replace(SWIFT, counts=(6, 10, 5, 11, 4))) as trace:
        model(**inputs)
    assert kept_of_top(trace.last, orders) == {"0.05": 1.0, "0.1": 1.0}
    place = {slot: i for i, slot in enumerate(trace.candidates[0][0].tolist())}
    assert {place[slot] for slot in trace.kept[-1][0].tolist()} == set(orders[5][:4])


def rows_by_hand():
    """Two questions of one task."""
    stage = {"groups": 2, "mean error": 0.1, "first": 3, "last": 7}
    return [
        {
            "task": "ref",
            "ranking": [[a]],
            "kept of top": {"drop": {"0.1": d}, "bypass": {"0.1": b}},
            "alignment": {"0.2": [stage | {"mean error": a}]},
        }
        for a, d, b in ((0.2, 0.0, 0.5), (0.4, 0.5, 0.6))
    ]


def test_summary_by_hand():
    """Means, standard errors, and the paired gain."""
    told = summary_of(rows_by_hand(), layers=3)
    assert told["ranking"] == {"early": [1], "late": [2], "share": [[pytest.approx(0.3)]]}
    kept = told["kept of top"]["ref"]["0.1"]
    assert kept["drop"] == {"mean": 0.25, "error": pytest.approx(0.25)}
    assert kept["gain"] == {"mean": pytest.approx(0.3), "error": pytest.approx(0.2)}
    assert told["alignment"]["0.2"][0]["mean error"] == pytest.approx(0.3)
    with pytest.raises(SelectionError, match="0 questions were asked"):
        summary_of([], layers=3)


def test_the_command_resumes_and_its_figures_show_its_numbers(untrained, tmp_path, capsys):
    """One row a question, none twice; what figures print is what the file says."""
    out = tmp_path / "explain.json"
    command = [
        "explain",
        "--model",
        untrained,
        *["--tasks", "ref", "--budget", "480", "--story", "480", "--out"],
        str(out),
    ]
    assert main([*command, "--samples", "1", "--layers", "2,5"]) == 0
    first = json.loads(out.read_text())
    assert main([*command, "--samples", "2", "--layers", "2,5"]) == 0
    found = json.loads(out.read_text())
    assert found["rows"][0] == first["rows"][0]
    assert len({row["key"] for row in found["rows"]}) == 2
    assert "kept by the last stage" in capsys.readouterr().out
    facts = found["summary"][0]
    cells = [text.get_text() for text in draw_ranking(facts).axes[0].texts]
    assert cells == [f"{100 * value:.0f}" for line in facts["ranking"]["share"] for value in line]
    means = [text.get_text() for axes in draw_overlap(found["rows"]).axes for text in axes.texts]
    kept = facts["kept of top"]["ref"]
    assert means == [f"{kept[top][fate]['mean']:.2f}" for top in ("0.05", "0.1") for fate in ("drop", "bypass")]
    planes = facts["changes"]
    panels = draw_changes(planes).axes
    drawn = [len(one.get_offsets()) for one in panels[0].collections]
    assert drawn == [len(planes["0.2"][0][key]) for key in ("members", "means", "merged")]
    assert main([*command, "--layers", "2,4"]) == 2
    assert "measured with another" in capsys.readouterr().err
    assert main([*command, "--story-of", "test/refx/3"]) == 2
    assert "a question is called test/TASK/NUMBER" in capsys.readouterr().err
    assert main([*command, "--layers", "4"]) == 2
    assert "with one stage (here after layer 4) nothing waits" in capsys.readouterr().err


def test_projection_is_seeded_and_needs_enough():
    """The same points every time; a handful cannot be projected."""
    model = tiny()
    found = changes(model, prompt(model), SWIFT, None)
    assert projected(found) == projected(found)
    with pytest.raises(SelectionError, match="too few to project"):
        projected([Change(1, 2, torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([0]))])


def sampled(key, target=(5,)):
    """A question with a target."""
    return Sample("ref", key, key, lambda: None, "what?", "that", None, (), target)


class Asking(Explaining):
    """A runner that needs no model."""

    def __init__(self):
        pass

    def asked(self, sample):
        """The sample itself."""
        return Asked(sample, {})


def test_a_story_is_told_only_where_the_others_lose(monkeypatch):
    """The first question that only the last method answers and keeps; none if the others hold on to it."""
    good, bad = {"right": True, "holds": True}, {"right": False, "holds": False}
    says = {
        "no": {"vanilla": bad, "fastv": bad, "swiftvlm": good},
        "both": {"vanilla": good, "fastv": good, "swiftvlm": good},
        "held": {"vanilla": good, "fastv": bad | {"holds": True}, "swiftvlm": good},
        "yes": {"vanilla": good, "fastv": bad, "swiftvlm": good},
    }
    monkeypatch.setattr(stories, "_say", lambda runner, one, method, budget: says[one.sample.key][method.name])

    methods = {"fastv": FastV(), "swiftvlm": SWIFT}
    samples = [sampled("yes", ()), *(sampled(key) for key in says)]
    told = tell_story(Asking(), samples, methods, 192)
    assert told["key"] == "yes"
    assert told["said"] == {"fastv": bad, "swiftvlm": good}
    assert tell_story(Asking(), samples[:-1], methods, 192) is None


def test_a_story_can_be_of_what_acts_before_the_language_model(untrained):
    """Such a method sees the picture being encoded, and its choice counts as kept."""
    model, processor = load_checkpoint(untrained, "float32", "cpu")
    runner = Explaining(model, processor, replace(SWIFT, counts=None), 300)
    one = runner.asked(embedded_task("ref", 1).samples[0])
    said = stories._say(runner, one, find_method("divprune"), 300)
    run = Trace.from_json(said["trace"]).last
    assert len(run.kept[0][0]) == 300
    assert said["holds"] == any(patch in one.sample.target for patch in kept_patches(run))


def kept_patches(run):
    """Numbers of the patches that are left at the end."""
    slots = run.candidates[0][0].tolist()
    return [slots.index(slot) for slot in run.kept[-1][0].tolist()]


def test_stages_and_lost_show_what_was_kept(untrained, tmp_path):
    """Panels name layers and counts; every patch that a stage did not select is dark."""
    model, processor = load_checkpoint(untrained, "float32", "cpu")
    runner = Explaining(model, processor, replace(SWIFT, counts=None), 300)
    one = runner.asked(embedded_task("ref", 1).samples[0])
    said = stories._say(runner, one, runner.swift, 300)
    assert said["holds"] == stories._holds(Trace.from_json(said["trace"]).last, one.sample)
    told = {"question": "q", "answer": "a", "target": [0, 25], "said": {"swiftvlm": said}}
    picture = draw(scene(TEST, 0))
    stages, lost = draw_stages(picture, told), draw_lost(picture, told)
    run = Trace.from_json(said["trace"]).last
    titles = [axes.get_title() for axes in stages.axes]
    assert titles == [f"after layer {run.after[i]}: {len(run.kept[i][0])} kept" for i in range(3)]
    shown = lost.axes[0].images[0].get_array()
    original = stages.axes[0].images[0].get_array()
    assert shown.mean() < original.mean()


def test_costs_are_means_over_questions(tmp_path, capsys):
    """Seconds of all questions over their number; a file without bytes is refused."""
    summary = [
        {"cell": "vanilla", "samples": 2, "seconds": 4.0, "kv_bytes": 3e6},
        {"cell": "vanilla", "samples": 6, "seconds": 4.0, "kv_bytes": 1e6},
        {"cell": "fastv@9", "samples": 4, "seconds": 2.0, "kv_bytes": 5e5},
    ]
    left, right = draw_cost(summary).axes
    assert [patch.get_width() for patch in left.patches] == [1.0, 0.5]
    assert [patch.get_width() for patch in right.patches] == [2.0, 0.5]
    (tmp_path / "old.json").write_text(json.dumps({"summary": [{"cell": "vanilla"}], "rows": []}))
    assert main(["figure", "cost", "--data", str(tmp_path / "old.json")]) == 2
    assert "no result file of swiftvlm eval" in capsys.readouterr().err
