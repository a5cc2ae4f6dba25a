"""The pages' code runs as it stands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import swiftvlm
from scripts import tables
from swiftvlm import methods
from swiftvlm.scenes import drawing, words
from swiftvlm.scenes import world as scenes
from tests.laws.cases import SETTINGS, mixed_batch
from tests.support import tiny

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str) -> list[str]:
    """The Python of a page, block by block."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def test_adding_a_method(monkeypatch):
    """The example of docs/adding.md: short, within its budget, and a no-op where it keeps everything."""
    method, use, learned = blocks("adding.md")
    assert len(method.strip().splitlines()) <= 30
    names: dict[str, Any] = {"picture": drawing.draw(scenes.scene(words.TEST, 0))}
    exec(method + use, names)
    trace, loudest = names["trace"], names["Loudest"]
    assert 180 < trace.average_tokens <= 192
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]
    batch, model = mixed_batch(SETTINGS[0]), tiny()
    plain = model(**batch).logits
    with swiftvlm.prune(model, loudest(), budget=1.0):
        assert torch.equal(model(**batch).logits, plain)
    # The second place: with its line in the table, the name is enough.
    table = {**methods.METHODS, "loudest": loudest}
    monkeypatch.setattr(methods, "METHODS", table)
    assert swiftvlm.plan("loudest", 192, swiftvlm.ModelShape(), 576).average_tokens <= 192
    # A module of one's own that says what `Loudest` computes chooses what `Loudest` does.
    exec(learned, names)
    chosen = [
        kept_by(model, names["Trained"](Length(), counts=(5,)), batch),
        kept_by(model, loudest(counts=(5,)), batch),
    ]
    assert chosen[0] == chosen[1]


class Length(torch.nn.Module):
    """Stands for trained weights."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The length of a state, as a module's single output."""
        return hidden.norm(dim=-1, keepdim=True)


def kept_by(model: torch.nn.Module, method: Any, batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """The tokens that a method's only stage keeps, row by row."""
    with swiftvlm.prune(model, method) as trace:
        model(**batch)
    return [row.tolist() for row in trace.kept[0]]


def test_what_pages_show_is_there():
    """Every picture and page that a page refers to exists."""
    pages = [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_tables_are_what_result_files_say():
    """Every table behind a `<!-- table: -->` is what its arguments print, to the last digit."""
    pages = [DOCS.parent / "README.md", DOCS / "results.md"]
    texts = [page.read_text() for page in pages]
    assert all("<!-- table: results/" in text for text in texts)
    for page, text in zip(pages, texts, strict=True):
        assert tables.filled(text) == text, f"python scripts/tables.py --fill {page.name}"
    cut = texts[0].replace("| vanilla | 83 |", "| vanilla | 82 |")
    assert tables.filled(cut) == texts[0] != cut


def measured(folder: Path, name: str, model: str, right: dict[str, list[int]]) -> str:
    """A result file in which cells answer questions of `ref`: their scores, question by question."""
    rows = [
        {"task": "ref", "cell": cell, "key": f"test/ref/{i}", "answer": "", "score": float(score), "tokens": 100.0}
        | {"flops": 1e9, "kv_bytes": 1, "seconds": 0.1}
        for cell, scores in right.items()
        for i, score in enumerate(scores)
    ]
    (folder / name).write_text(json.dumps({"header": {"model": model, "tasks": {}, "pool": "test"}, "rows": rows}))
    return str(folder / name)


def printed(*arguments: str) -> list[str]:
    """The lines of a table."""
    return tables.lines_of(tables._parser().parse_args(arguments))


def test_tables_by_hand(tmp_path):
    """Shares relative to vanilla, differences, names, the best of a sweep; only questions that all of them answered."""
    right = {"vanilla": [1, 1, 1, 0, 0, 0], "a:x=1@9": [1, 0, 0, 0], "a:x=2@9": [1, 1, 0, 0]}
    file = measured(tmp_path, "one.json", "m", right)
    assert printed(file)[2:] == [
        "| vanilla | 75 |  | 100 | 1.0 |",
        "| a:x=1@9 | 25 | 33% | 100 | 1.0 |",
        "| a:x=2@9 | 50 | 67% | 100 | 1.0 |",
    ]
    named = printed(file, "--cells", "vanilla; a:x=1@9 as first;", "--against", "a:x=1@9", "--called", "A")
    assert named[0].endswith("| boxes - A | others - A |")
    assert named[2].endswith("| +50.0 ±56.6 | - |")
    assert named[3] == "| first | 25 | 33% | 100 | 1.0 |  |  |"
    assert [line.split(" | ")[0] for line in printed(file, "--best")[2:]] == ["| a:x=2@9"]


def test_tables_refuse(tmp_path):
    """Files of different models, cells that are not there, marks without an end."""
    one = measured(tmp_path, "one.json", "m", {"vanilla": [1]})
    other = measured(tmp_path, "other.json", "n", {"vanilla": [1]})
    with pytest.raises(SystemExit, match="different models"):
        printed(one, other)
    with pytest.raises(SystemExit, match="nope: there is no such cell; there are vanilla"):
        printed(one, "--cells", "nope")
    with pytest.raises(SystemExit, match="2 marks '<!-- table: ', but 1 with an end of their own"):
        tables.filled(f"<!-- table: {one} -->\n\nprose\n<!-- table: {one} -->\n<!-- end -->\n")
    assert "| vanilla | 100 |" in tables.filled(f"<!-- table: {one} -->\n<!-- end -->\n")
