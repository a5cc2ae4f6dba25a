"""The layer profile (paper, section 3.2): how well a model answers from the visual tokens that one layer ranks first.

Pass 1 runs the model whole and notes each layer's first tokens by the attention of the last prompt token, head mean,
one query row a layer. Pass 2 runs it again for each layer i: layers 1 and 2 see every token, all others the tokens of
layer i, at their original positions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from swiftvlm.amounts import Budget, Number
from swiftvlm.engine import prune
from swiftvlm.errors import SelectionError
from swiftvlm.evaluation import VANILLA, Cell, Evaluation, Listed, Row, Sample, mean
from swiftvlm.methods import Method, find_method
from swiftvlm.plans import Cut, Plan
from swiftvlm.scores import TextAttention, View
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage

WHOLE_LAYERS = 2  # that see every token in pass 2


@dataclass(frozen=True)
class Watch:
    """Rates as `TextAttention` does and notes, for every row, the places of its first `share` among visual tokens:

    ascending, or best first if `ordered`.
    """

    share: Number
    probe: Literal["previous", "next"] = "previous"
    ordered: bool = False
    noted: list[tuple[int, ...]] = field(default_factory=list)

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """The attention of the last prompt token; what is noted is what the latest prefill said."""
        scores = TextAttention(self.probe).rate(view)
        rows = range(len(scores))
        # In place, since the record is frozen. Places among the row's visual tokens, not in its sequence.
        self.noted[:] = [first(scores[row, view.candidates[row]], self.share, self.ordered) for row in rows]
        return scores


def first(scores: Tensor, share: Number, ordered: bool = False) -> tuple[int, ...]:
    """Places of the best `share` of scores (tokens,), at least one, ascending or best first; ties: the earlier."""
    # Without the small number, 7% of 100 would be 8: the product comes out above 7.
    count = max(1, math.ceil(share * len(scores) - 1e-9)) if len(scores) else 0
    # Stable, as `tokens.keep_top`: what is noted is what a stage would keep.
    order = torch.argsort(scores, descending=True, stable=True)
    best = order[:count].tolist()
    return tuple(best if ordered else sorted(best))


@dataclass(frozen=True)
class Watching(Method):
    """Prunes nothing; notes what each layer looks at. `watches`: behind layers 1, 2, ...; one before the last layer."""

    name: ClassVar[str] = "watching"
    summary: ClassVar[str] = "prunes nothing and notes what layers look at"

    watches: tuple[Watch, ...] = ()

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage a watch."""
        # A lone watch is the last layer's: no stage can stand behind that one, so it projects before it.
        layers = range(1, shape.layers) if len(self.watches) > 1 else (shape.layers - 1,)
        return tuple(Stage(after=layer, score=watch) for layer, watch in zip(layers, self.watches, strict=True))

    def plan(
        self, shape: ModelShape, visual: int, text: Number, budget: Budget = None, preset: str | None = None
    ) -> Plan:
        """Every token at every layer."""
        # Cuts that keep everything: without any, no stage would run, and nothing be noted.
        cuts = tuple(Cut(stage.after, visual, 0) for stage in self.stages(shape)) if visual else ()
        return Plan(shape.layers, visual, text, cuts)


class Profiling(Evaluation):
    """Answers every sample once whole and once a layer."""

    def __init__(self, model: PreTrainedModel, processor: Any, batch: int, share: Number) -> None:
        """`share`: V, the fraction of visual tokens that a layer keeps.

        Raises:
            SelectionError: a share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise SelectionError(f"share is the fraction of visual tokens a layer keeps, in (0, 1]; got {share}")
        super().__init__(model, processor, batch)
        self.share = share
        self.layers = ModelShape.of(model).layers
        self.seen: dict[str, list[tuple[int, ...]]] = {}  # of each sample: places by layer

    def cells(self) -> list[Cell]:
        """Vanilla and one cell a layer."""
        # Only a stand-in for the layers' cells: what each batch keeps is known when `method` is asked.
        vanilla = find_method(VANILLA)
        return [Cell(label, vanilla, None) for label in (VANILLA, *(f"layer {i}" for i in range(1, self.layers + 1)))]

    def method(self, cell: Cell, samples: Sequence[Sample], inputs: dict[str, Any]) -> Method:
        """Only the places of the cell's layer, which are looked up first if need be."""
        if cell.label == VANILLA:
            return cell.method
        # Not in the journal: a run that goes on watches again, which is two prefills of the batch.
        if any(sample.key not in self.seen for sample in samples):
            self._watch(samples, inputs)
        layer = int(cell.label.split()[1])
        return Listed(tuple(self.seen[sample.key][layer - 1] for sample in samples), after=WHOLE_LAYERS)

    def _watch(self, samples: Sequence[Sample], inputs: dict[str, Any]) -> None:
        """Pass 1. The last layer's map cannot be read behind it, where nothing can be cut any more: it is projected."""
        watches = tuple(Watch(self.share) for _ in range(self.layers - 1))
        last = Watch(self.share, probe="next")
        model: Any = self.model
        for method in (Watching(watches), Watching((last,))):
            with torch.no_grad(), prune(self.model, method):
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
        # From [layer][row] to [row][layer].
        by_row = zip(*(watch.noted for watch in (*watches, last)), strict=True)
        self.seen.update(zip((sample.key for sample in samples), (list(places) for places in by_row), strict=True))


@dataclass(frozen=True)
class Profile:
    """x_1 ... x_L with standard errors. `relative`: mean over tasks of accuracy / vanilla's, the paper's figure 4.

    `spread`: each task's profile stretched to 0 ... 1 first, the other reading of "normalized". `tasks`: of each task,
    vanilla's accuracy and every layer's, with errors. `left_out`: tasks that vanilla never answers.
    """

    relative: tuple[Number, ...]
    errors: tuple[Number, ...]
    spread: tuple[Number, ...]
    tasks: dict[str, dict[str, Any]]
    left_out: tuple[str, ...]


def _shares(record: dict[str, Any], key: str) -> list[Number]:
    """A task's figures, layer by layer, relative to vanilla's accuracy."""
    return [value / record["vanilla"] for value in record[key]]


def _each(join: Callable[..., Number], tasks: Sequence[Sequence[Number]]) -> list[Number]:
    """What the tasks say of a layer, joined, layer by layer."""
    return [join(*parts) for parts in zip(*tasks, strict=True)]


def profile_of(rows: Sequence[Row], layers: int) -> Profile:
    """The profile that answers of `Profiling` give.

    The error of x_i adds up those of its tasks' accuracies; vanilla's own, common to all layers, is left out.

    Raises:
        SelectionError: vanilla never answers any task, or a layer has no answers.
    """
    labels = [f"layer {i}" for i in range(1, layers + 1)]
    tasks = {task: _record(task, cells, labels) for task, cells in _accuracies(rows).items()}
    used = [record for record in tasks.values() if record["vanilla"] > 0]
    if not used:
        raise SelectionError(f"the model answers nothing in {', '.join(tasks) or 'no task'}, even unpruned")
    relative = _each(lambda *parts: fmean(parts), [_shares(one, "accuracy") for one in used])
    # As of independent tasks: the errors add in squares.
    errors = _each(lambda *parts: math.hypot(*parts) / len(used), [_shares(one, "error") for one in used])
    spread = _each(lambda *parts: fmean(parts), [_stretched(one["accuracy"]) for one in used])
    left_out = tuple(task for task, record in tasks.items() if record["vanilla"] == 0)
    return Profile(tuple(relative), tuple(errors), tuple(spread), tasks, left_out)


Accuracies = dict[str, tuple[Number, Number]]  # of each cell, with its error


def _accuracies(rows: Sequence[Row]) -> dict[str, Accuracies]:
    """Of each task."""
    found: dict[str, Accuracies] = {}
    ordered = sorted(rows, key=lambda row: (row["task"], row["cell"]))
    for (task, cell), part in groupby(ordered, key=lambda row: (row["task"], row["cell"])):
        found.setdefault(task, {})[cell] = mean([row["score"] for row in part])
    return found


def _record(task: str, cells: Accuracies, labels: list[str]) -> dict[str, Any]:
    missing = [label for label in (VANILLA, *labels) if label not in cells]
    if missing:
        raise SelectionError(f"task {task} has no answers of {', '.join(missing[:3])}: measure it first")
    accuracy, error = zip(*(cells[label] for label in labels), strict=True)
    return {"vanilla": cells[VANILLA][0], "accuracy": list(accuracy), "error": list(error)}


def _stretched(values: Sequence[Number]) -> list[Number]:
    """Values from 0, the least, to 1, the largest; all 0 where they are equal."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]
