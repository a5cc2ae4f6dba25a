"""The program as a user meets it: whole runs on tiny checkpoints, and every kind of mistake."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

import swiftvlm
from swiftvlm import SwiftVLM, Trace
from swiftvlm.cli import run as run_module
from swiftvlm.cli.app import _note, main
from swiftvlm.cli.parse import read_budget, read_method, read_shape
from swiftvlm.cli.plan import spans
from swiftvlm.cli.report import scaled
from swiftvlm.cli.saving import SaveError, check_folder, save_all
from swiftvlm.errors import SwiftVLMError
from swiftvlm.methods import METHODS
from swiftvlm.methods.fastv import FastV, RandomTokens
from swiftvlm.methods.feather import Feather
from swiftvlm.methods.ivcprune import IVCPrune
from swiftvlm.methods.pdrop import PDrop
from swiftvlm.methods.sparsevlm import SparseVLM
from swiftvlm.plans import Cut, Plan
from tests.checkpoints import save_checkpoint

BUDGET = ["--budget", "32", "--max-new-tokens", "3"]
pytestmark = pytest.mark.filterwarnings("ignore:no measured pruning layers")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """One folder a family."""
    return {f: str(save_checkpoint(tmp_path_factory.mktemp(f), f)) for f in ("llava", "llava_next")}


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """A picture on disk."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_noise((120, 80), 90).convert("RGB").save(path)
    return str(path)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_whole_run(family, checkpoints, photo, tmp_path, capsys):
    """Answers, facts, picture and trace; the trace loads back equal; the budget holds."""
    where = tmp_path / "out"
    command = ["run", photo, "why?", "--model", checkpoints[family], "--compare", "--json", "--save", str(where)]
    assert main([*command, "--budget", "0.6", "--max-new-tokens", "4"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["average_tokens"] <= 0.6 * facts["visual_tokens"]
    assert facts["kv_bytes"] < facts["vanilla_kv_bytes"]
    assert facts["seconds"]["prefill"]["least"] <= facts["seconds"]["prefill"]["median"]
    assert sorted(path.name for path in where.iterdir()) == ["answer.txt", "picture.png", "trace.json"]
    text = (where / "trace.json").read_text()
    trace = Trace.from_json(text)
    assert trace.to_json() == text
    assert trace.tokens_per_layer == tuple(facts["tokens_per_layer"])
    assert Image.open(where / "picture.png").width > 600
    assert (where / "answer.txt").read_text().startswith(facts["answer"])


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("name", ["astronaut", "china"])
def test_real_photographs(family, name, checkpoints, tmp_path, capsys):
    """scikit-image's astronaut (square) and scikit-learn's china.jpg (wide), end to end."""
    pixels = data.astronaut() if name == "astronaut" else load_sample_image("china.jpg")
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    command = [
        "run",
        str(tmp_path / "photo.jpg"),
        "what?",
        "--model",
        checkpoints[family],
        "--budget",
        "0.55",
        "--json",
    ]
    assert main([*command, "--max-new-tokens", "2", "--save", str(tmp_path / "out")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["visual_tokens"] == {"llava": 64, "llava_next": 336 if name == "astronaut" else 234}[family]
    assert Trace.from_json((tmp_path / "out" / "trace.json").read_text()).average_tokens == facts["average_tokens"]


def test_streaming_to_a_terminal(checkpoints, photo, capsys):
    """Without --json the answer and a table appear on stdout."""
    assert main(["run", photo, "why?", "--model", checkpoints["llava"], *BUDGET]) == 0
    out = capsys.readouterr().out
    assert "visual tokens per layer: 64 x 3" in out
    assert "KV cache" in out


def test_several_images_and_their_pictures(checkpoints, photo, tmp_path):
    """One picture an image, numbered."""
    command = [
        "run",
        photo,
        photo,
        "same?",
        "--model",
        checkpoints["llava"],
        "--budget",
        "0.5",
        "--max-new-tokens",
        "2",
    ]
    assert main([*command, "--save", str(tmp_path), "--pad-to-square", "--system", "vicuna", "--json"]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"picture-1.png", "picture-2.png"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--budget", "3"], "cannot be reached: stages after layers [3, 4, 5] of 8 leave between"),
        (["--budget", "-1"], "must be at least 1, got -1"),
        (["--budget", "1.5"], "a fraction in (0, 1], got 1.5"),
        (["--budget", "many"], "got 'many'"),
        (["--method", "fastvv"], "did you mean 'fastv'?"),
        (["--preset", "96"], "has no preset '96'"),
        (["--dtype", "int8"], "--dtype is auto, float32"),
        (["--system", "none"], "--system is 'template' or 'vicuna'"),
        (["--device", "cuda:9"], "not available"),
        (["--max-new-tokens", "0"], "max-new-tokens"),
        (["--bugdet", "3"], "No such option"),
        (["--layers", "5,3"], "must act after more and more layers, got [5, 2]"),
        (["--layers", "3,9"], "a model of 8 layers can be cut after layers 1 to 7"),
        (["--layers", "three"], "--layers are ints with commas, such as 3,11,15, got 'three'"),
        (["--layers", "3", "--method", "fastv"], "--layers '3' is for --method swiftvlm, not 'fastv'"),
        (["--layers", "3", "--method", "swiftvlm:layers=4"], "has layers of its own; leave --layers '3' out"),
        (["--method", "fastv:after=3:after=4"], "'fastv:after=3:after=4' gives a field more than once"),
        (["--method", "random:seed=99999999999999999999"], "seed is an int from 0 to 2 ** 63 - 1"),
    ],
)
def test_a_wrong_option_is_one_line_and_two(extra, message, checkpoints, photo, tmp_path, capsys):
    """Exit code 2, one clear line on stderr, nothing on stdout, nothing saved."""
    where = tmp_path / "out"
    command = ["run", photo, "why?", "--model", checkpoints["llava"], "--json", "--save", str(where)]
    assert main([*command, *extra]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("swiftvlm: ") and "note:" not in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert captured.out == ""
    assert not where.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval --out plot.png", "--out is a result file, such as eval.json, got 'plot.png'"),
        ("eval --out .", "--out is a result file, such as eval.json, got '.'"),
        ("eval --methods fastv --budgets 192,0", "a budget in tokens must be at least 1, got 0"),
        ("eval --methods fastv --budgets nan", "a fraction in (0, 1], got nan"),
        ("eval --methods fastv --layers 3", "--layers '3' is for swiftvlm, which is not among --methods fastv"),
        ("eval --methods swiftvlm:layers=4 --layers 3", "has layers of its own"),
        ("eval --methods vanilla --device cuda:99", "device 'cuda:99' is not available here"),
        ("eval --methods vanilla --dtype int3", "--dtype is one of auto, float32, bfloat16, float16, got 'int3'"),
        ("explain --samples 1 --tasks ref --layers 3,8,11 --budget 600", "--budget 600 prunes nothing"),
        ("plan --all --budget 0", "a budget in tokens must be at least 1, got 0"),
        ("plan --all --visual-tokens -3", "visual_tokens must be an int of at least 0, got -3"),
        ("plan --all --text-tokens 0", "text_tokens must be at least 1"),
        ("plan --method holov:alpha=1e38 --budget 192", "alpha is the weight of variety"),
        ("plan --method sparsevlm:version=first:scale=0 --budget 192", "scale is a number of tokens"),
    ],
)
def test_nonsense_measures_nothing(command, message, tmp_path, monkeypatch, capsys):
    """One line and exit code 2 before anything is asked; no file is left."""
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_asked_twice_is_answered_once(tmp_path, monkeypatch, capsys):
    """A budget, a method or a task that is named again counts no second time, nor does a row that is joined again."""
    monkeypatch.chdir(tmp_path)
    asked = ["eval", "--limit", "1", "--tasks", "gqa,gqa", "--methods", "fastv,fastv", "--budgets", "192,192", "--json"]
    assert main([*asked, "--out", "once.json"]) == 0
    saved = json.loads(Path("once.json").read_text())
    assert [row["cell"] for row in saved["rows"]] == ["fastv@192"]
    Path("twice.json").write_text(json.dumps(saved | {"rows": saved["rows"] * 2}))
    capsys.readouterr()
    assert main([*asked, "--out", "joined.json", "--join", "twice.json"]) == 0
    assert [record["samples"] for record in json.loads(capsys.readouterr().out)] == [1]


def test_wrong_inputs_are_told_before_the_model_loads(photo, tmp_path, capsys):
    """A question, an image and a folder to save in are checked first: the checkpoint here does not even exist."""
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([photo, ""], "the question is empty"),
        ([photo, "a <image>?"], "already contains '<image>'"),
        (["only a question"], "give at least one image"),
        (["-", "-", "why?"], "standard input holds one image"),
        ([str(tmp_path), "why?"], "is a folder"),
        ([photo, "why?", "--save", str(tmp_path / "file")], "is a file, give a folder"),
    ):
        assert main(["run", *arguments, "--model", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err


def test_only_our_own_warnings_are_notes(tmp_path, capsys):
    """Not those of a library that lies in a folder of our name."""
    _note("ours", UserWarning, swiftvlm.__file__, 1)
    _note("theirs", UserWarning, str(tmp_path / "swiftvlm" / ".venv" / "other.py"), 1)
    assert capsys.readouterr().err == "swiftvlm: note: ours\n"


def test_no_arguments_show_the_help(capsys):
    """Help on stdout, but nothing was done."""
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "plan", "methods", "families"])
def test_every_command_has_help_with_an_example(command, capsys):
    """--help says how, with a line to copy."""
    assert main([command, "--help"]) == 0
    assert f"Example: swiftvlm {command}" in capsys.readouterr().out


def test_plan_as_json_and_as_a_table(capsys):
    """The figures of the geo-192 preset, without any weights."""
    assert main(["plan", "--budget", "192", "--text-tokens", "70", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["average_tokens"] == 191.5
    assert facts["stages"][0] == {"after": 3, "kept": 246, "merged": 62}
    assert facts["kv_bytes"] == (191.5 + 70) * 32 * 2 * 4096 * 2
    assert main(["plan", "--budget", "192"]) == 0
    out = capsys.readouterr().out
    assert "246 kept + 62 merged" in out
    assert "1.75 T" in out


def test_plan_reads_a_config(checkpoints, capsys):
    """A checkpoint's folder gives the shape."""
    assert main(["plan", "--shape", checkpoints["llava"], "--visual-tokens", "64", "--budget", "0.6", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens_per_layer"]) == 8
    assert read_shape("llava-1.5-13b").layers == 40
    with pytest.raises(SwiftVLMError, match=r"is neither one of llava-1\.5-7b"):
        read_shape("llava-2")


def test_lists(capsys):
    """Both registries, as tables and as JSON."""
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["swiftvlm"]["acts_after"] == [3, 10, 14]
    assert main(["families", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["llava", "llava_next"]
    assert main(["methods"]) == 0
    assert "arXiv:2403.06764" in capsys.readouterr().out


def test_ctrl_c_leaves_nothing_behind(checkpoints, photo, tmp_path, monkeypatch, capsys):
    """Interrupted while answering and while saving: 130, one line, no files."""
    where = tmp_path / "out"
    command = ["run", photo, "why?", "--model", checkpoints["llava"], *BUDGET, "--save", str(where)]

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    for name in ("_generate", "write_picture"):
        with monkeypatch.context() as patch:
            patch.setattr(run_module, name, interrupt)
            assert main(command) == 130
        assert "swiftvlm: interrupted" in capsys.readouterr().err
        assert not where.exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """All files or none, and files of an earlier run stay."""
    (tmp_path / "a").write_text("old")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match="No space left"):
        save_all(tmp_path, {"a": lambda path: path.write_text("new"), "b": full})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_saving_replaces_and_checks(tmp_path):
    """A second run overwrites; a file where a folder should be is refused."""
    save_all(tmp_path / "x" / "y", {"a": lambda path: path.write_text("1")})
    save_all(tmp_path / "x" / "y", {"a": lambda path: path.write_text("2")})
    assert (tmp_path / "x" / "y" / "a").read_text() == "2"
    with pytest.raises(SaveError, match="is a file"):
        check_folder(tmp_path / "x" / "y" / "a")


def test_small_helpers():
    """Budgets by type, stretches of layers, and numbers with prefixes."""
    assert [read_budget(text) for text in (None, "1", "1.0")] == [None, 1, 1.0]
    assert isinstance(read_budget("1.0"), float)
    assert spans(Plan(6, 10, 2, (Cut(2, 5, 1),))) == [(1, 2, 10, ""), (3, 6, 6, "5 kept + 1 merged")]
    assert [scaled(3 * 2**20, 1024, "B"), scaled(1500, 1000, ""), scaled(7, 0, "")] == ["3.0 MiB", "1.5 k", "7.0"]


OPTIONS = (
    "--budget 192 0.5 -1 --method fastv swiftvlm --preset 128 --json --compare --save -- --shape llava-1.5-7b "
    "--visual-tokens 0 --model - why? --max-new-tokens nan é😀 --help"
)
WORDS = st.sampled_from([*OPTIONS.split(), ""])


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    command=st.sampled_from(["run", "plan", "methods", "families", "rnu"]),
    words=st.lists(WORDS, max_size=7),
    seed=st.integers(0, 9),
)
def test_fuzzed_command_lines(command, words, seed, checkpoints, photo, tmp_path_factory, monkeypatch):
    """Any words in any order: done or bad usage, never a failure, and nothing written where nothing was done."""
    folder = tmp_path_factory.mktemp("fuzz")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", open(photo, "rb"))  # noqa: SIM115  # closed with the interpreter's own
    shuffled = random.Random(seed)
    words = [shuffled.choice([word, photo, checkpoints["llava"]]) if word == "192" else word for word in words]
    assert main([command, *words]) in (0, 2)
    shutil.rmtree(folder)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]),
)
def test_fuzzed_image_files(cut, flips, kind, checkpoints, photo, tmp_path_factory):
    """Damaged files of every kind: an answer or one line, exit code 0 or 2."""
    path = tmp_path_factory.mktemp("fuzz") / "image"
    Image.open(photo).resize((24, 16)).save(path, kind)
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[int(place * (len(data) - 1))] = value
    path.write_bytes(data[: max(1, int(len(data) * max(cut, 0.3)))])
    assert main(
        ["run", str(path), "why?", "--model", checkpoints["llava"], "--json", "--budget", "32", "--max-new-tokens", "1"]
    ) in (0, 2)


def test_plan_of_all_methods(capsys):
    """Every method at one budget: its counts, or why it cannot meet it."""
    assert main(["plan", "--all", "--budget", "128", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(METHODS)
    assert "cannot be reached" in rows["pdrop"]["error"]
    able = [row for row in rows.values() if "error" not in row]
    assert all(126 < row["average_tokens"] <= 128 for row in able if row["method"] != "vanilla")
    assert rows["vanilla"]["average_tokens"] == 576
    assert {*rows} - {row["method"] for row in able} == {"pdrop", "feather", "ivcprune"}
    assert main(["plan", "--all", "--budget", "128"]) == 0
    assert "nuwa" in capsys.readouterr().out
    assert main(["plan", "--all", "--preset", "192"]) == 2
    assert "leave --preset" in capsys.readouterr().err


def test_methods_that_need_weights_say_so(capsys):
    """A trained method's name is known, and why it is not here."""
    assert main(["plan", "--method", "VoCo-LLaMA"]) == 2
    assert "needs trained weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("fastv:after=4", FastV(after=4)),
        ("random:after=3", RandomTokens(after=3, seed=7)),
        ("random:seed=4", RandomTokens(seed=4)),
        ("swiftvlm:layers=5", SwiftVLM(layers=(5,))),
        ("swiftvlm:rest=drop/bypass", SwiftVLM(rest=("drop", "bypass"))),
        ("feather:after=8", Feather(after=(8,))),
        ("ivcprune:after=12", IVCPrune(after=12)),
        ("sparsevlm:version=1.5:scale=10", SparseVLM(version="1.5", scale=10)),
        ("pdrop:after=8/16:positions=original", PDrop(after=(8, 16), positions="original")),
        (
            "swiftvlm:layers=3/8/11:rest=drop:rope=false:merged_share=0",
            SwiftVLM(layers=(3, 8, 11), rest="drop", rope=False, merged_share=0.0),
        ),
    ],
)
def test_methods_with_fields(text, method):
    """A method's fields behind colons are those of its class."""
    assert read_method(text, seed=7) == method


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fastw:after=2", "did you mean 'fastv'"),
        ("fastv:aftr=4", "fastv:aftr=4 is not FIELD=VALUE of fastv; its fields are after, counts"),
        ("fastv:after", "fastv:after is not FIELD=VALUE"),
        ("vanilla:after=1", "it has no fields"),
        ("fastv:after=two", "fastv:after is an int, such as 2, got 'two'"),
        ("fastv:after=4/5", "fastv:after is an int, such as 2, got '4/5'"),
        ("pdrop:after=8/x", "pdrop:after is a tuple of ints or None, such as 3/11/15, got '8/x'"),
        ("fastv:after=true", "fastv:after is an int, such as 2, got 'true'"),
        ("swiftvlm:layers=3/b", "swiftvlm:layers is a tuple of ints or None, such as 3/11/15, got '3/b'"),
        ("swiftvlm:merged_share=2", "merged_share is a fraction"),
        ("visionzip:merged_share=2", "merged_share is the contextual share"),
        (
            "pdrop:positions=orginal",
            "positions is one of ('original', 'renumbered'), such as renumbered, got 'orginal'",
        ),
        ("ivcprune:after=12/14", "ivcprune:after is an int or None, got '12/14'"),
        ("cdpruner:relevance=x", "cdpruner:relevance is a function or None, got 'x'"),
        ("swiftvlm:rest=drop/keep", "swiftvlm:rest is one of ('bypass', 'merge', 'drop') or a tuple of such"),
    ],
)
def test_wrong_fields_are_told(text, says):
    """What a method lacks or cannot take is one clear error."""
    with pytest.raises(SwiftVLMError, match=re.escape(says)):
        read_method(text)
