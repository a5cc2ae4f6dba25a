"""The pages' code runs as it stands."""

import re
from pathlib import Path
from typing import Any

import torch

import swiftvlm
from scripts import tables
from swiftvlm.mini import drawing, scenes, words
from tests.laws.cases import SETTINGS, mixed_batch
from tests.support import tiny

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str) -> list[str]:
    """The Python of a page, block by block."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def test_adding_a_method():
    """The example of docs/adding.md: short, within its budget, and a no-op where it keeps everything."""
    method, use = blocks("adding.md")
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
    cut = texts[0].replace("| vanilla | 82 |", "| vanilla | 83 |")
    assert tables.filled(cut) == texts[0] != cut
