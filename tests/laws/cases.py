"""What the tests of laws 1 to 7 and 12 share: methods, situations, batches, and a look at what each layer is given."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swiftvlm import SwiftVLM
from swiftvlm.methods.base import Method
from swiftvlm.methods.dart import Dart
from swiftvlm.methods.fastv import FastV, RandomTokens, UniformTokens
from swiftvlm.methods.feather import Feather
from swiftvlm.methods.greedyprune import GreedyPrune
from swiftvlm.methods.ivcprune import IVCPrune
from swiftvlm.methods.pdrop import PDrop
from swiftvlm.methods.sparsevlm import SparseVLM, SparseVLMPlus
from swiftvlm.methods.topv import TopV
from swiftvlm.methods.vanilla import Vanilla
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage
from swiftvlm.trace import Run
from tests.support import IMAGE, Row, batch_of, make_row, tiny

SWIFT: dict[str, Any] = {"layers": (2, 4, 6), "counts": (6, 3, 5, 2, 4)}
METHODS: dict[str, Method] = {
    "vanilla": Vanilla(),
    "random": RandomTokens(after=2, counts=(5,)),
    "uniform": UniformTokens(after=1, counts=(6,)),
    "fastv": FastV(after=3, counts=(5,)),
    "pdrop": PDrop(after=(2, 4, 5), counts=(6, 4, 2)),
    "feather": Feather(after=(2, 4), counts=(6, 3), stride=2),
    "dart": Dart(after=2, counts=(9,), pivots=2),
    "topv": TopV(after=2, counts=(7,)),
    "greedyprune": GreedyPrune(after=3, counts=(5,), alike=0.2),
    "ivcprune": IVCPrune(after=3, counts=(7,), coordinates=0.3, seeds=0.1),
    "sparsevlm": SparseVLM(after=(2, 4), counts=(6, 3)),
    "sparsevlm+": SparseVLMPlus(after=(2, 4), counts=(6, 3)),
    "swiftvlm": SwiftVLM(**SWIFT),
    "grid": SwiftVLM(**SWIFT, anchors="grid", coordinates=0.25),
    "merge": SwiftVLM(**SWIFT, rest="merge"),
    "drop": SwiftVLM(**SWIFT, rest="drop"),
    "renumbered": SwiftVLM(**SWIFT, positions="renumbered"),
}


# Its counts follow from the image, so that laws on planned counts do not hold: its plan is a bound.
MEASURED: dict[str, Method] = {
    "first release": SparseVLM(version="first", after=(2, 4, 5), counts=(9, 6, 4), scale=1.5, bias=1.0),
}


@dataclass(frozen=True)
class Setting:
    """A model, and the side on which its prompts are padded."""

    family: str
    kv_heads: int
    attn: str
    side: str

    def __str__(self) -> str:
        return f"{self.family}-{self.kv_heads}-{self.attn}-{self.side}"

    @property
    def model(self) -> nn.Module:
        """Its tiny model."""
        return tiny(self.family, self.kv_heads, self.attn)


# Half of all combinations. Each pair of values meets in the first, third, ... alone, and again in the others.
SETTINGS = [
    Setting("llava", 4, "sdpa", "left"),
    Setting("llava", 4, "eager", "right"),
    Setting("llava", 2, "eager", "right"),
    Setting("llava", 2, "sdpa", "left"),
    Setting("llava_next", 4, "eager", "left"),
    Setting("llava_next", 4, "sdpa", "right"),
    Setting("llava_next", 2, "sdpa", "right"),
    Setting("llava_next", 2, "eager", "left"),
]
LEFT = [setting for setting in SETTINGS if setting.side == "left"]
RIGHT = [setting for setting in SETTINGS if setting.side == "right"]
PRUNING = {name: method for name, method in METHODS.items() if name != "vanilla"}
# Once the prompt is through, what is cached is no longer what was seen: laws that compare the two leave these out.
TRIMMING = ("ivcprune",)
CACHED = {name: method for name, method in METHODS.items() if name not in TRIMMING}
every_pruning = pytest.mark.parametrize("method", PRUNING.values(), ids=PRUNING)


def crossed(methods: Mapping[str, Any], settings: Sequence[Any]) -> pytest.MarkDecorator:
    """Run each method in every second setting, by turns in the first, third, ... and in the others.

    In all of them where half would leave a family out: every law is meant for every method on every family.
    """
    families = {setting.family for setting in settings}
    halves = [settings[turn::2] for turn in range(2)]
    halves = [half if {setting.family for setting in half} == families else settings for half in halves]
    pairs = [(name, setting) for turn, name in enumerate(methods) for setting in halves[turn % 2]]
    cases = [pytest.param(methods[name], setting, id=f"{name}-{setting}") for name, setting in pairs]
    return pytest.mark.parametrize(("method", "setting"), cases)


def keeping_all(method: Method) -> Method:
    """The same stages with counts that no prompt here exceeds."""
    return replace(method, counts=(999,) * len(method.counts)) if method.counts else method


def stages_of(method: Method, model: nn.Module) -> tuple[Stage, ...]:
    """The method's stages on this model."""
    return method.stages(ModelShape.of(model))


@cache
def mixed_rows(model: nn.Module, seed: int = 0) -> tuple[Row, ...]:
    """One image; two images; none; one image and a short question. Visual counts differ, so do lengths."""
    sizes = [[(20, 56)], [(28, 28), (20, 56)], None, [(40, 56)]]
    shapes = zip((1, 2, 0, 1), (6, 4, 9, 2), sizes, strict=True)
    return tuple(make_row(model, seed + i, images=n, text=text, sizes=s) for i, (n, text, s) in enumerate(shapes))


def equal_rows(model: nn.Module, seed: int = 0) -> list[Row]:
    """Two rows of the same length with unequal visual counts: a batch without any padding."""
    long = make_row(model, seed, images=2, sizes=[(28, 28), (20, 56)])
    short = make_row(model, seed + 1, sizes=[(20, 56)])
    return [long, replace(short, ids=short.ids + text_ids(1, len(long.ids) - len(short.ids), seed)[0].tolist())]


def text_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    """Random text tokens (rows, length)."""
    return torch.randint(2, IMAGE, (rows, length), generator=torch.Generator().manual_seed(seed))


def mixed_batch(setting: Setting, seed: int = 0, extra: int = 0) -> dict[str, Tensor]:
    """`mixed_rows` padded on the setting's side, `extra` more than the longest needs."""
    return batch_of(setting.model, list(mixed_rows(setting.model, seed)), side=setting.side, extra=extra)


def answering(
    model: nn.Module, batch: dict[str, Tensor], answer: Tensor, pieces: tuple[int, ...] = (), positions: bool = False
) -> tuple[Any, Tensor]:
    """Prefill, then feed the answer to the cache in `pieces` (one by one); the prefill, and the answer's logits.

    `positions`: give position ids that skip padding, as `generate` does.
    """
    given = batch | ({"position_ids": counted(batch["attention_mask"])} if positions else {})
    prefill = model(**given)
    mask, logits = batch.get("attention_mask"), []
    for piece in answer.split(list(pieces) or 1, dim=1) if answer.shape[1] else ():
        extra: dict[str, Tensor] = {}
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(piece)], dim=1)
            extra["attention_mask"] = mask
            extra |= {"position_ids": counted(mask)[:, -piece.shape[1] :]} if positions else {}
        logits.append(model(input_ids=piece, past_key_values=prefill.past_key_values, **extra).logits)
    return prefill, torch.cat(logits, dim=1) if logits else prefill.logits[:, :0]


def bare(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch without its mask."""
    return {name: value for name, value in batch.items() if name != "attention_mask"}


def counted(mask: Tensor) -> Tensor:
    """Position ids that skip padding."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def with_answer(batch: dict[str, Tensor], answer: Tensor) -> dict[str, Tensor]:
    """The prompts with the answer behind them, as one longer prompt."""
    longer = {"input_ids": torch.cat([batch["input_ids"], answer], dim=1)}
    if "attention_mask" in batch:
        longer["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(answer)], dim=1)
    return batch | longer


@dataclass(frozen=True)
class Look:
    """What one layer was given."""

    hidden: Tensor
    mask: Tensor | None
    rotary: tuple[Tensor, Tensor]

    def keys_seen(self, row: int, place: int) -> int:
        """How many keys the token at `place` may attend to."""
        if self.mask is None:
            return place + 1
        seen = self.mask[row if self.mask.shape[0] > 1 else 0, 0, place]
        return int(seen.sum() if seen.dtype == torch.bool else (seen == 0).sum())


@contextmanager
def watching(model: nn.Module) -> Iterator[list[Look]]:
    """Collect what every layer is given, call by call; enter it inside a `prune`, whose hooks then run first."""
    looks: list[Look] = []

    def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        looks.append(Look(hidden, kwargs.get("attention_mask"), kwargs["position_embeddings"]))

    layers = model.model.language_model.layers
    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        yield looks
    finally:
        for hook in hooks:
            hook.remove()


def last_slot(batch: dict[str, Tensor], row: int) -> int:
    """The last prompt token of a row."""
    return int(batch["attention_mask"][row].nonzero()[-1])


def visual_slots(batch: dict[str, Tensor], row: int) -> list[int]:
    """The visual tokens of a row that may be dropped: all but its last prompt token."""
    slots = (batch["input_ids"][row] == IMAGE).nonzero()[:, 0].tolist()
    return [slot for slot in slots if slot != last_slot(batch, row)]


def alive(batch: dict[str, Tensor], run: Run, row: int, stage: int) -> list[int]:
    """The slots of a row behind a stage (-1: before the first): its text, and what the trace says stayed."""
    slots = batch["attention_mask"][row].nonzero()[:, 0].tolist()
    if stage < 0 or not run.kept:
        return slots
    gone = set(visual_slots(batch, row)) - set((run.kept[stage][row].tolist()) + run.anchors[stage][row].tolist())
    return [slot for slot in slots if slot not in gone]


def stage_before(stages: tuple[Stage, ...], layer: int) -> int:
    """The latest stage whose outcome layer `layer` (0-based) sees; -1 for none."""
    return sum(stage.after <= layer for stage in stages) - 1


def real_tokens(batch: dict[str, Tensor], row: int, states: Tensor, tokens: int) -> Tensor:
    """The row's `tokens` real tokens out of (batch, length, ...) states of any depth."""
    start = first_place(batch, row, tokens, states.shape[1])
    return states[row, start : start + tokens]


def first_place(batch: dict[str, Tensor], row: int, tokens: int, length: int) -> int:
    """Where a row's `tokens` real tokens begin in a sequence of `length`: padding at the right stays behind them."""
    behind = batch["input_ids"].shape[1] - 1 - last_slot(batch, row)
    return length - tokens - min(behind, length - tokens)
