"""What the tests of laws 8 to 11 share: methods, batches, replays of single rows, snapshots."""

from dataclasses import replace
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.methods.fastv import FastV
from swiftvlm.methods.feather import Feather
from swiftvlm.methods.pdrop import PDrop
from swiftvlm.trace import Run, Stages
from tests.laws.replay import Replay
from tests.support import IMAGE, Row, batch_of, make_row

COUNTS = (6, 3, 5, 2, 4)
FAMILIES = ("llava", "llava_next")
METHODS: dict[str, Method] = {
    "fastv": FastV(after=2, counts=(5,)),
    "pdrop": PDrop(after=(2, 3, 5), counts=(6, 4, 2)),
    "feather": Feather(after=(2, 4), counts=(6, 3), stride=2),
    "swiftvlm": swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=COUNTS),
    "renumbered": swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=COUNTS, positions="renumbered"),
}


def replay_of(model: nn.Module, method: Method, run: Run, index: int, offset: int) -> Replay:
    """The choices of one row of a batch, for that row on its own; `offset`: padding tokens that stood on its left."""

    def own(stages: Stages) -> Stages:
        return tuple((stage[index] - offset,) for stage in stages)

    choices = {name: own(getattr(run, name)) for name in ("kept", "anchors", "candidates")}
    choices["groups"] = tuple((stage[index],) for stage in run.groups)
    row = replace(run, visual=run.visual[index : index + 1], **choices)
    return Replay(row, method.stages(swiftvlm.ModelShape.of(model)))


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


def copied_rows(model: nn.Module, seed: int = 0) -> list[Row]:
    """`mixed_rows` for calls that copy prompts (beams, several answers), each at most one image where these are lost.

    Before 5.20 `generate` copies `pixel_values` image by image, so two copies of a prompt with images a, b read
    a, a and b, b, pruned or not: nothing about such a row can be exact there.
    """
    if Version(transformers.__version__) >= Version("5.20"):
        return mixed_rows(model, seed)
    sizes = [[(40, 56)], None, [(40, 56)], [(20, 56)]]
    text = (6, 9, 12, 2)
    return [make_row(model, seed + i, images=i != 1, text=text[i], sizes=sizes[i]) for i in range(4)]


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
