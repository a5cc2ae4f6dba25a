"""Why bypass works, question by question: rankings, selections and alignment on the same prompts (paper, 3.4, 4.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from swiftvlm.amounts import Number
from swiftvlm.engine import prune
from swiftvlm.errors import SelectionError
from swiftvlm.evaluation import Evaluation, Journal, Row, Sample, mean
from swiftvlm.methods import SwiftVLM
from swiftvlm.selection.alignment import Change, agreement, changes
from swiftvlm.selection.overlap import early_against_late, kept_of_top, rankings
from swiftvlm.trace import Run

CELL = "explain"
SHARES = (0.05, 0.1, 0.2, 0.3)  # merged tokens' shares of a stage's total
FATES = ("drop", "bypass")
EARLY, LATE = 9 / 32, 20 / 32  # figure 2: layers 1 to 9 against 10 to 20 of 32


@dataclass(frozen=True)
class Asked:
    """One prompt as the model takes it (batch 1)."""

    sample: Sample
    inputs: dict[str, Any]


class Explaining(Evaluation):
    """Runs every sample whole and under SwiftVLM's variants, and keeps numbers only."""

    def __init__(self, model: PreTrainedModel, processor: Any, method: SwiftVLM, budget: Number) -> None:
        """`method`: whose layers and fields the variants take over."""
        super().__init__(model, processor, batch=1)
        self.swift, self.budget = method, budget

    def explain(self, samples: Sequence[Sample], journal: Journal, tell: Callable[[int], None]) -> None:
        """One row a sample, on the disk before the next begins."""
        for number, sample in enumerate(samples):
            tell(number)
            if (CELL, sample.key) not in journal.done:
                journal.add([self._row(self.asked(sample))])
        tell(len(samples))

    def asked(self, sample: Sample, encoded: bool = True) -> Asked:
        """A sample's prompt with its picture; as pixels, not `encoded`, for what acts before the language model."""
        return Asked(sample, self._inputs([sample], self._encode([sample]), encoded))

    def _row(self, one: Asked) -> Row:
        orders = rankings(self.model, one.inputs)
        first, last = early_and_late(self.shape.layers)
        table = [line[first:last] for line in early_against_late(orders)[:first]]
        kept = {fate: kept_of_top(self._run(one, fate), orders) for fate in FATES}
        aligned = {
            str(share): [agreement(change) | _span(change) for change in self.changes(one, share)] for share in SHARES
        }
        told = {"ranking": _rounded(table), "kept of top": kept, "alignment": _rounded(aligned)}
        return {"task": one.sample.task, "cell": CELL, "key": one.sample.key, **told}

    @torch.no_grad()
    def _run(self, one: Asked, fate: Any) -> Run:
        with prune(self.model, replace(self.swift, rest=fate), budget=self.budget) as trace:
            self.model(**one.inputs)
        return trace.last

    def changes(self, one: Asked, share: Number) -> list[Change]:
        """Changes of merged tokens and members at this share of merged tokens."""
        return changes(self.model, one.inputs, replace(self.swift, merged_share=share), self.budget)


def early_and_late(layers: int) -> tuple[int, int]:
    """The last early layer and the last late one of figure 2: 9 and 20 of 32, scaled."""
    first = max(1, round(EARLY * layers))
    return first, min(layers - 1, max(first + 1, round(LATE * layers)))


def _span(change: Change) -> dict[str, int]:
    return {"first": change.first, "last": change.last}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def _ranking(rows: Sequence[Row]) -> list[list[Number]]:
    """Means over the questions of a table that each of them has."""
    tables = [row["ranking"] for row in rows]
    return [[fmean([table[i][j] for table in tables]) for j in range(len(line))] for i, line in enumerate(tables[0])]


def summary_of(rows: Sequence[Row], layers: int) -> dict[str, Any]:
    """Means over the questions: figure 2's table, figure 8's overlaps a task, alignment by share and stage.

    Raises:
        SelectionError: there are no rows.
    """
    if not rows:
        raise SelectionError(f"{len(rows)} questions were asked: nothing to explain")
    first, last = early_and_late(layers)
    early, late = list(range(1, first + 1)), list(range(first + 1, last + 1))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return {
        "questions": len(rows),
        "ranking": {"early": early, "late": late, "share": _ranking(rows)},
        "kept of top": {task: _overlaps([row for row in rows if row["task"] == task]) for task in tasks},
        "alignment": {share: _aligned([row["alignment"][share] for row in rows]) for share in rows[0]["alignment"]},
    }


def _overlaps(rows: Sequence[Row]) -> dict[str, Any]:
    """Of each fate and top: the mean with its standard error; and the paired gain of bypass over drop."""
    found: dict[str, Any] = {"questions": len(rows)}
    for top in rows[0]["kept of top"]["drop"]:
        values = {fate: [row["kept of top"][fate][top] for row in rows] for fate in FATES}
        values["gain"] = [b - d for b, d in zip(values["bypass"], values["drop"], strict=True)]
        found[top] = {key: dict(zip(("mean", "error"), mean(part), strict=True)) for key, part in values.items()}
    return found


def _aligned(questions: Sequence[Sequence[Row]]) -> list[dict[str, Number]]:
    """Means over the questions, stage by stage."""
    stages = range(min(len(stages) for stages in questions))
    return [{key: fmean([one[i][key] for one in questions]) for key in questions[0][i]} for i in stages]


def projected(changes_: Sequence[Change], seed: int = 0) -> list[dict[str, Any]]:
    """Figure 7: t-SNE of members' changes, groups' means and merged tokens' changes, one plane a `Change`.

    Raises:
        SelectionError: scikit-learn is not installed, or there are too few tokens for a neighbourhood.
    """
    return [_plane(change, seed) for change in changes_]


def _plane(change: Change, seed: int) -> dict[str, Any]:
    try:
        from sklearn.manifold import TSNE  # type: ignore[import-untyped]
    except ImportError as missing:
        raise SelectionError(f"figure 7 needs scikit-learn ({missing}): pip install 'swiftvlm[scenes]'") from None
    points: Float[Tensor, "all dim"] = torch.cat([change.members, change.means, change.merged]).cpu()
    if len(points) < 8:
        raise SelectionError(f"{len(points)} changes are too few to project; give a larger budget or prompt")
    drawn = TSNE(perplexity=min(30, len(points) // 4), init="pca", random_state=seed).fit_transform(points.numpy())
    places, members, groups = drawn.tolist(), len(change.members), len(change.merged)
    return {
        "first": change.first,
        "last": change.last,
        "groups": change.groups.tolist(),
        "members": _rounded(places[:members]),
        "means": _rounded(places[members : members + groups]),
        "merged": _rounded(places[members + groups :]),
    }
