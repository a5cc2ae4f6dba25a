"""Evaluation: scores by hand, results that survive a kill, tables."""

import json
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from swiftvlm.cli.app import main
from swiftvlm.cli.eval import show
from swiftvlm.errors import SwiftVLMError
from swiftvlm.evaluation.journal import Journal
from swiftvlm.evaluation.run import chunks, fingerprint
from swiftvlm.evaluation.scorers import f1, iou, mean, paired, score
from swiftvlm.evaluation.summary import summarize
from swiftvlm.evaluation.tasks import Sample, Task
from swiftvlm.mini.tasks import embedded_task
from swiftvlm.scenes import TASKS
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings("ignore:no measured pruning layers")


def sample(answer: str, box=None) -> Sample:
    """A question with this answer."""
    return Sample("ref" if box else "text", "k", "i", lambda: Image.new("RGB", (8, 8)), "?", answer, box)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 2 / 6),
        ((0, 0, 2, 2), (2, 0, 3, 2), 0.0),
        ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
    ],
)
def test_overlap_by_hand(one, other, expected):
    """Intersection over union of boxes that can be counted."""
    assert iou(one, other) == pytest.approx(expected)
    assert iou(other, one) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("[0.10, 0.10, 0.30, 0.30]", 1.0),
        ("it is at [0.10, 0.10, 0.30, 0.20]", 1.0),  # exactly half
        ("[0.10, 0.10, 0.30, 0.19]", 0.0),
        ("[0.30, 0.30, 0.10, 0.10]", 0.0),
        ("on the left", 0.0),
        ("", 0.0),
    ],
)
def test_boxes_count_from_half(said, right):
    """A box counts if it overlaps the true one by at least half; what is no box does not."""
    assert score(sample("[0.10, 0.10, 0.30, 0.30]", (0.1, 0.1, 0.3, 0.3)), said) == right


@pytest.mark.parametrize(("said", "right"), [("FAX", 1.0), (" FAX ", 1.0), ("FA", 0.0), ("fax", 0.0), ("", 0.0)])
def test_words_count_as_a_whole(said, right):
    """Words must be the very words; space around them does not matter."""
    assert score(sample("FAX"), said) == right


def test_means_and_errors_by_hand():
    """Four answers, three right: 0.75 with a standard error of 0.25; paired differences likewise; F1."""
    assert mean([1, 1, 1, 0]) == (0.75, pytest.approx(0.25))
    assert mean([1]) == (1.0, 0.0)
    assert paired([1, 1, 0, 0], [1, 0, 0, 0]) == (0.25, pytest.approx(0.25))
    with pytest.raises(ValueError, match="0 values"):
        mean([])
    with pytest.raises(ValueError, match="shorter"):
        paired([1, 1], [1])
    assert f1([True, True, False, False], [True, False, True, False]) == pytest.approx(0.5)
    assert f1([False], [True]) == 0.0


def test_summaries_by_hand():
    """Accuracy relative to vanilla on the same samples, and POPE's F1 of `yes`."""

    def row(cell, key, right, answer="yes"):
        return {"task": "pope", "cell": cell, "key": key, "answer": answer, "score": right} | {
            "tokens": 10.0,
            "flops": 5,
            "kv_bytes": 7,
            "seconds": 0.5,
        }

    rows = [row("vanilla", "a", 1.0), row("vanilla", "b", 1.0, "no"), row("vanilla", "c", 0.0)]
    rows += [row("fastv@5", "a", 0.0, "no"), row("fastv@5", "b", 1.0, "no")]
    whole, cut = summarize(rows, ["vanilla", "fastv@5"])
    assert (whole["accuracy"], whole["samples"], whole["seconds"]) == (pytest.approx(2 / 3), 3, 1.5)
    assert whole["f1"] == pytest.approx(2 / 3)  # said yes, no, yes where yes, no, no is true
    assert (cut["relative"], cut["change"], cut["f1"]) == (0.5, -0.5, 0.0)


def test_tasks_know_their_limits():
    """Wrong names and limits are told; keys are unique; a shorter task is the beginning of a longer one."""
    with pytest.raises(SwiftVLMError, match=r"no task is called 'reff'; there are ref, ref\+"):
        embedded_task("reff")
    with pytest.raises(SwiftVLMError, match="a limit is 1 to 500, got 501"):
        embedded_task("ref", 501)
    short, long = embedded_task("ref", 5), embedded_task("ref", 9)
    assert [s.key for s in short.samples] == [s.key for s in long.samples[:5]]
    assert len({s.key for s in long.samples}) == 9


def test_chunks_keep_pictures_together():
    """All questions of a picture come in one chunk, each exactly once."""
    tasks = [embedded_task(name, 12) for name in ("ref", "pope")]
    found = list(chunks(tasks, 4))
    keys = [s.key for chunk in found for s in chunk]
    assert sorted(keys) == sorted(s.key for task in tasks for s in task.samples)
    pictures = [{s.image for s in chunk} for chunk in found]
    assert all(len(here) <= 4 for here in pictures)
    assert sum(map(len, pictures)) == len(set().union(*pictures))


HEADER = {"model": "m", "tasks": {"embedded": 1}}
ROWS = [{"cell": "c", "key": str(i), "score": 1.0} for i in range(4)]


def test_a_journal_goes_on(tmp_path):
    """Batches survive; half a line does not; a finished file can be extended; nothing is there twice."""
    path = tmp_path / "out.json"
    first = Journal(path, HEADER)
    first.add(ROWS[:2])
    part = tmp_path / "out.json.part"
    with part.open("a") as file:
        file.write('[{"cell": "c", "key": "2", "sc')
    second = Journal(path, HEADER)
    assert second.rows == ROWS[:2]
    second.add(ROWS[2:3])
    second.finish([])
    assert not part.exists()
    third = Journal(path, HEADER)
    assert third.done == {("c", "0"), ("c", "1"), ("c", "2")}
    third.add(ROWS[3:])
    # Killed between the finished file and the removal of the part: no row counts twice.
    left = part.read_bytes()
    third.finish([])
    part.write_bytes(left)
    assert Journal(path, HEADER).rows == ROWS
    # What another process wrote meanwhile comes in once, however often this one finishes.
    late = Journal(path, HEADER)
    late.rows, late.done = [], set()
    late.finish([])
    late.finish([])
    assert Journal(path, HEADER).rows == ROWS
    assert json.loads(path.read_text())["header"]["model"] == "m"


def test_files_of_two_machines_are_joined(tmp_path):
    """Rows that are missing come over, once; another model's do not."""
    mine, theirs = Journal(tmp_path / "a.json", HEADER), Journal(tmp_path / "b.json", HEADER)
    mine.add(ROWS[:2])
    theirs.add(ROWS[1:])
    mine.join(theirs)
    mine.join(theirs)
    assert mine.rows == ROWS == Journal(tmp_path / "a.json", HEADER).rows


def test_a_model_is_known_on_every_processor():
    """A newline that was worked out when loading differs in its last bits; other weights are another model."""
    model = deepcopy(tiny("llava_next"))
    known = fingerprint(model)
    with torch.no_grad():
        model.model.image_newline.mul_(1 + 1e-7)
        assert fingerprint(model) == known
        model.model.image_newline.mul_(1.1)
        assert fingerprint(model) != known


def test_a_name_stands_for_one_method(tmp_path):
    """Other fields or layers under a known name are refused, before and after a kill; so is another command's file."""
    path = tmp_path / "a.json"
    first = Journal(path, HEADER)
    first.claim({"x": "FastV(after=2)"})
    first.add(ROWS[:1])
    first.claim({"y": "FastV(after=3)"})
    again = Journal(path, HEADER)
    assert again.rows == ROWS[:1]
    for label, other in (("x", "FastV(after=4)"), ("y", "FastV(after=4)")):
        with pytest.raises(SwiftVLMError, match=rf"has answers of {label} as FastV.*, and now it is FastV\(after=4\)"):
            again.claim({label: other})
    again.finish([])
    with pytest.raises(SwiftVLMError, match="and now it is"):
        Journal(path, HEADER).claim({"x": "FastV(after=4)"})
    Journal(tmp_path / "b.json", HEADER | {"kind": "profile"}, ("kind",)).finish([])
    with pytest.raises(SwiftVLMError, match=r"another kind \('profile', now 'eval'\)"):
        Journal(tmp_path / "b.json", HEADER | {"kind": "eval"}, ("kind",))
    Journal(tmp_path / "h.json", HEADER | {"dtype": "bfloat16"}).finish([])
    with pytest.raises(SwiftVLMError, match=r"another dtype \('bfloat16', now 'float32'\)"):
        Journal(tmp_path / "h.json", HEADER | {"dtype": "float32"})
    # From before it was written down.
    assert Journal(path, HEADER | {"dtype": "float32"}).rows == ROWS[:1]
    (tmp_path / "c.json").write_text('{"rows": []}')
    with pytest.raises(SwiftVLMError, match="is no result file"):
        Journal(tmp_path / "c.json", HEADER)


def test_a_borrowed_file_is_only_read(tmp_path):
    """Half a line at the end of a file that still grows stays where it is."""
    path = tmp_path / "a.json"
    Journal(path, HEADER).add(ROWS[:1])
    part = path.with_name("a.json.part")
    part.write_text(part.read_text() + '[{"task"')
    before = part.read_bytes()
    assert Journal(path, HEADER, borrowed=True).rows == ROWS[:1]
    assert part.read_bytes() == before


def test_a_journal_refuses_what_is_not_its_own(tmp_path):
    """Another model, other questions, or no result file at all: told, and left as it is."""
    path = tmp_path / "out.json"
    Journal(path, HEADER).finish([])
    with pytest.raises(SwiftVLMError, match=r"another model \('m', now 'n'\); give another --out"):
        Journal(path, {**HEADER, "model": "n"})
    with pytest.raises(SwiftVLMError, match="another tasks"):
        Journal(path, {**HEADER, "tasks": {"embedded": 2}})
    path.write_text("hello")
    with pytest.raises(SwiftVLMError, match="is no result file"):
        Journal(path, HEADER)
    assert path.read_text() == "hello"


COMMAND = ["eval", "--limit", "3", "--batch", "2", "--tasks", "ref,pope", "--methods", "vanilla,fastv,swiftvlm"]


def stripped(path) -> list:
    """Rows without their times, in a fixed order."""
    rows = json.loads(path.read_text())["rows"]
    return sorted(json.dumps({key: value for key, value in row.items() if key != "seconds"}) for row in rows)


def test_two_processes_on_one_file_lose_nothing(tmp_path):
    """Whoever finishes last keeps what the other has finished, and what it has not."""
    path = tmp_path / "out.json"
    mine, theirs = Journal(path, HEADER), Journal(path, HEADER)
    mine.add(ROWS[:1])
    theirs.add(ROWS[1:2])
    mine.finish([])
    theirs.add(ROWS[2:])
    theirs.finish([])
    assert {row["key"] for row in Journal(path, HEADER).rows} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("line", ["not json", "null", '[{"cell": "fastv"}]', '{"no": "cells"}'])
def test_a_damaged_file_is_named(line, tmp_path):
    """What was in the middle of it is not guessed."""
    path, part = tmp_path / "out.json", tmp_path / "out.json.part"
    Journal(path, HEADER).add(ROWS[:2])
    part.write_text(part.read_text() + line + "\n")
    with pytest.raises(SwiftVLMError, match=r"out\.json\.part is damaged \(.*\); mend it, or give another --out"):
        Journal(path, HEADER)


def test_the_oracle_is_a_method_without_a_budget(untrained, tmp_path):
    """Every sample keeps the patches of its own picture, whatever the batch; one cell for all budgets."""
    out = tmp_path / "oracle.json"
    asked = ["--methods", "oracle", "--budgets", "192,96", "--limit", "3", "--tasks", "ref", "--out", str(out)]
    assert main(["eval", "--model", untrained, "--dtype", "float32", *asked]) == 0
    rows = json.loads(out.read_text())["rows"]
    shown = {sample.key: len(sample.shown) for sample in embedded_task("ref", 3).samples}
    assert {row["cell"] for row in rows} == {"oracle"}
    assert {row["key"]: row["tokens"] for row in rows} == {
        key: pytest.approx((2 * 576 + 4 * count) / 6, abs=1e-3) for key, count in shown.items()
    }


def test_a_killed_run_goes_on_elsewhere(untrained, tmp_path, capsys):
    """kill -9 in the middle, the files moved, the same command again: the rows of an undisturbed run, once each."""
    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    base = [*COMMAND, "--model", untrained, "--dtype", "float32", "--budgets", "0.6"]
    assert main([*base, "--out", str(whole), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {record["cell"] for record in summary} == {"vanilla", "fastv@0.6", "swiftvlm@0.6"}
    code = "from swiftvlm.cli.app import entry; entry()"
    process = subprocess.Popen([sys.executable, "-c", code, *base, "--out", str(killed)], stderr=subprocess.DEVNULL)
    part = killed.with_name("killed.json.part")
    limit = time.monotonic() + 120
    while time.monotonic() < limit and (not part.exists() or part.read_bytes().count(b"\n") < 3):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists(), "the run ended before it could be killed"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    os.rename(part, moved / part.name)
    assert main([*base, "--out", str(moved / "killed.json"), "--json"]) == 0
    assert stripped(moved / "killed.json") == stripped(whole)
    assert Image.open(moved / "killed.png").width > 300


def test_a_budget_below_the_floor_is_a_dash(untrained, tmp_path, capsys):
    """A budget that a method cannot meet has a row of dashes and its reason; the others are measured."""
    base = [*COMMAND[:6], "ref", "--model", untrained, "--dtype", "float32", "--limit", "1"]
    base = ["eval", "--limit", "1", "--tasks", "ref", "--model", untrained, "--dtype", "float32"]
    out = str(tmp_path / "x.json")
    assert main([*base, "--methods", "vanilla,fastv,swiftvlm", "--budgets", "250", "--out", out]) == 0
    shown = capsys.readouterr().out
    assert "swiftvlm@250" in shown
    assert "cannot be reached" in shown
    assert {row["cell"] for row in json.loads((tmp_path / "x.json").read_text())["rows"]} == {"vanilla", "fastv@250"}


def test_counts_of_its_own_are_a_budget_of_its_own(untrained, tmp_path):
    """What `swiftvlm split` prints is one cell, whatever the budgets of the others."""
    fixed = "swiftvlm:layers=2/4:counts=40/10/20"
    out = tmp_path / "x.json"
    asked = ["--methods", f"uniform,{fixed}", "--budgets", "300,260", "--limit", "1", "--tasks", "ref"]
    assert main(["eval", "--model", untrained, "--dtype", "float32", *asked, "--out", str(out), "--json"]) == 0
    rows = {row["cell"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {"uniform@300", "uniform@260", fixed}
    assert rows[fixed]["tokens"] == pytest.approx((2 * 576 + 50 + 3 * 20) / 6, abs=1e-3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--quick", "--limit", "3"], "give --quick or --limit 3, not both"),
        (["--tasks", "ref,foo"], "no task is called 'foo'"),
        (["--methods", "fastw"], "fastw"),
        (["--budgets", "many"], "'many'"),
        (["--out", "nowhere/x.json"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(extra, message, capsys):
    """Wrong options end with 2 and one line that names them."""
    assert main(["eval", *extra]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_pictures_are_encoded_once(untrained):
    """A picture's features are computed once for all methods where transformers lets them be shared."""
    from swiftvlm.evaluation.run import Cell, Evaluation
    from swiftvlm.inputs.checkpoint import load_checkpoint
    from swiftvlm.methods import find_method

    model, processor = load_checkpoint(untrained, "float32")
    calls: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    evaluation = Evaluation(model, processor, 4)
    if not evaluation.shares_features:
        pytest.skip("this transformers encodes inside generate")

    class Kept(Journal):
        def __init__(self) -> None:
            self.rows, self.done = [], set()

        def add(self, rows):
            self.rows += rows

    task = replace(embedded_task("ref", 2))
    assert isinstance(task, Task)
    cells = [Cell("vanilla", find_method("vanilla"), None), Cell("fastv@0.6", find_method("fastv"), 0.6)]
    journal = Kept()
    evaluation.run([task], cells, journal, lambda said: None)
    assert len(journal.rows) == 4
    assert len(calls) == 1


def test_no_figure_is_cut_short(capsys):
    """However long a method's name is, the table of six tasks has every digit."""
    tasks = [embedded_task(name, 1) for name in TASKS]
    name = "swiftvlm:layers=1/4/20:rest=merge:counts=115/28/57/14/57"
    record = {
        "cell": name,
        "samples": 1,
        "accuracy": 0.5,
        "error": 0.08,
        "tokens": 95.25,
        "flops": 2.3e9,
        "seconds": 1.0,
    }
    show([record | {"task": task.name} for task in tasks], tasks, {}, Path("x.json"))
    line = next(line for line in capsys.readouterr().out.splitlines() if name in line)
    assert line.count("50.0 ±8.0") == 6
    assert "95.2" in line
    assert "2.30" in line


@pytest.mark.parametrize(
    ("said", "true", "right"),
    [
        ("Yes.", "yes", True),
        ("The red umbrella", "a red umbrella!", True),
        ("red  umbrella\n", "Red Umbrella", True),
        ("no", "yes", False),
        ("umbrella red", "red umbrella", False),
        ("A", "AN", False),  # articles alone are told apart
        ("A", "A", True),
        ("", "yes", False),
    ],
)
def test_words_of_a_user_may_differ_in_case_and_punctuation(said, true, right):
    """A checkpoint's own way of saying yes is right; the embedded tasks, whose signs are letters, stay exact."""
    drawn: Any = None
    sample = Sample("own", "1", "1", drawn, "what?", true, exact=False)
    assert score(sample, said) == right
    assert score(replace(sample, exact=True), said) == (said == true)
