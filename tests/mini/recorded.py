"""What was measured with the shipped weights on the quick subset, and written to `results/`."""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "results" / "mini-quick.json"


def summary() -> dict[str, dict[str, Any]]:
    """Vanilla's record of each task."""
    return {r["task"]: r for r in json.loads(FILE.read_text())["summary"] if r["cell"] == "vanilla"}


def scores() -> dict[str, float]:
    """Vanilla's score of each question by its key."""
    return {row["key"]: row["score"] for row in json.loads(FILE.read_text())["rows"] if row["cell"] == "vanilla"}
