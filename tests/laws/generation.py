"""What the tests of laws 8 to 11 share: methods and batches to run, and a replay of recorded choices, row by row."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.methods.fastv import FastV
from swiftvlm.plans import Cut, Plan
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage
from swiftvlm.trace import Run
from tests.support import IMAGE, Row, batch_of, make_row

COUNTS = (6, 3, 5, 2, 4)
FAMILIES = ("llava", "llava_next")
METHODS: dict[str, Method] = {
    "fastv": FastV(after=2, counts=(5,)),
    "swiftvlm": swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=COUNTS),
    "renumbered": swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=COUNTS, positions="renumbered"),
}


@dataclass(frozen=True)
class Chosen:
    """A score of 1 for given slots: a stage that keeps as many as there are keeps exactly these."""

    slots: tuple[int, ...]
    probe: None = None

    def rate(self, view: Any) -> Tensor:
        """1 or 0 for every token of the view."""
        return torch.isin(view.slot, torch.tensor(self.slots)).float()


@dataclass(frozen=True)
class Again(Method):
    """`method` with the tokens that one row of a run kept; groups follow from what is kept ("strided" anchors)."""

    name: ClassVar[str] = "again"

    method: Method
    kept: tuple[tuple[int, ...], ...]
    merged: tuple[int, ...]

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """The method's own stages with the choice already made."""
        own = self.method.stages(shape)
        return tuple(replace(stage, score=Chosen(slots)) for stage, slots in zip(own, self.kept, strict=True))

    def plan(self, shape: ModelShape, visual: int, text: Any, budget: Any = None, preset: str | None = None) -> Plan:
        """The recorded counts."""
        depths = [stage.after for stage in self.stages(shape)]
        counts = zip(depths, self.kept, self.merged, strict=True)
        cuts = tuple(Cut(after, len(kept), merged) for after, kept, merged in counts)
        return Plan(shape.layers, visual, text, cuts if visual else ())


def replay_of(method: Method, run: Run, index: int, offset: int) -> Again:
    """The choices of one row of a batch; `offset`: how many padding tokens stood on its left."""
    kept = tuple(tuple((stage[index] - offset).tolist()) for stage in run.kept)
    return Again(method, kept, tuple(len(stage[index]) for stage in run.anchors))


def recomputed(model: nn.Module, method: Method, row: Row, answer: Tensor) -> Tensor:
    """Logits that predict each token of `answer` behind the row, all in one prefill: (answer, vocabulary)."""
    longer = Row(row.ids + answer.tolist(), row.pixels, row.sizes)
    with swiftvlm.prune(model, method):
        logits = model(**batch_of(model, [longer])).logits[0]
    return logits[-len(answer) - 1 : -1]


def mixed_rows(model: nn.Module, seed: int = 0) -> list[Row]:
    """Rows of unequal lengths: one image, no image, two images, and a short question behind a small image."""
    sizes = [[(40, 56)], None, [(20, 56), (40, 56)], [(20, 56)]]
    images, text = (1, 0, 2, 1), (6, 9, 4, 2)
    return [make_row(model, seed + i, images=images[i], text=text[i], sizes=sizes[i]) for i in range(4)]


def small_row(model: nn.Module, seed: int = 0, text: int = 6) -> Row:
    """A row with one small image."""
    return make_row(model, seed, text=text, sizes=[(20, 56)])


def offsets(batch: dict[str, Tensor]) -> list[int]:
    """How many padding tokens stand on the left of each row."""
    return (batch["attention_mask"] == 0).sum(1).tolist()


def text_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    """Random text tokens (rows, length)."""
    return torch.randint(2, IMAGE, (rows, length), generator=torch.Generator().manual_seed(seed))


def snapshot(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Every attribute of every module, by identity; hooks, parameters and children one by one."""
    return {name: {key: _frozen(value) for key, value in vars(part).items()} for name, part in model.named_modules()}


def _frozen(value: Any) -> Any:
    return {key: id(item) for key, item in value.items()} if isinstance(value, dict) else id(value)
