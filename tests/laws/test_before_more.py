"""Laws 4 and 5 for methods before the language model: decoding is the recompute, and what the layers are given."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swiftvlm
from swiftvlm.errors import UnsupportedError
from swiftvlm.methods.base import Method
from swiftvlm.methods.cdpruner import CDPruner
from swiftvlm.stage import Stage
from swiftvlm.tower import Seen
from swiftvlm.trace import Run
from tests.laws.before import EVERY, FOUR, METHODS, both, every
from tests.laws.cases import (
    LEFT,
    RIGHT,
    Setting,
    alive,
    answering,
    bare,
    counted,
    crossed,
    equal_rows,
    last_slot,
    mixed_batch,
    real_tokens,
    stage_before,
    text_ids,
    visual_slots,
    watching,
    with_answer,
)
from tests.laws.replay import Recorded, Scored
from tests.support import LAYERS, PATCH, batch_of, make_row, tiny

CLOSE, STEPS = 1e-5, 3


def by_picture(seen: Seen) -> Tensor:
    """A relevance that no question changes."""
    return seen.embeds.float()[:, 0]


# What reads the text behind the image would choose anew where an answer is part of it.
TEXTLESS = METHODS | {"cdpruner": CDPruner(counts=(6,), relevance=by_picture)}


@dataclass(frozen=True)
class Said:
    """Scores that were given before, stage by stage, for the same tokens; what has come behind them is text."""

    scores: list[Tensor]
    probe: None = None

    def rate(self, view: Any) -> Tensor:
        """The next of them."""
        said, rated = self.scores.pop(0), torch.zeros(view.slot.shape)
        assert rated.shape[1] == said.shape[1] + STEPS
        rated[:, : said.shape[1]] = said
        return rated


def check_decode(setting: Setting, method: Method, batch: dict[str, Tensor], positions: bool = False) -> None:
    """Answers fed to the cache have the logits of one prefill of it all, whose choices are the same.

    Before the language model these must be the same unaided, since pictures do not change. A cut inside it asks the
    last token, which is another one then: it is told what it said of the prompt.
    """
    model, answer = setting.model, text_ids(len(batch["input_ids"]), STEPS, seed=1)
    recorded = Recorded(method)
    with swiftvlm.prune(model, recorded) as trace:
        _, steps = answering(model, batch, answer, positions=positions)
    longer = with_answer(batch, answer)
    given = {"position_ids": counted(longer["attention_mask"])} if positions else {}
    with swiftvlm.prune(model, Scored(method, Said([scores for scores, _ in recorded.heard]))) as again:
        whole = model(**longer, **given).logits[:, -STEPS:]
    assert choices(again.last) == choices(trace.last)
    torch.testing.assert_close(steps, whole, atol=CLOSE, rtol=0)


def choices(run: Run) -> list[Any]:
    """All that was decided, stage by stage."""
    return [[[slots.tolist() for slots in stage] for stage in part] for part in (run.kept, run.anchors, run.groups)]


@crossed(TEXTLESS, LEFT)
def test_cache_equals_recompute(method, setting):
    """Law 4: batches of one, two and no image, padded on the left.

    Not for prompts that end in an image (its last token is text while it is the last one, a patch to choose from
    later), and not for CDPruner's own relevance (it reads the text, which the answer makes longer).
    """
    check_decode(setting, method, mixed_batch(setting, seed=50, extra=1))


@crossed(TEXTLESS, RIGHT)
def test_cache_equals_recompute_behind_right_padding(method, setting):
    """Law 4: padding stays between prompt and answer; position ids skip it, as `generate` gives them."""
    check_decode(setting, method, mixed_batch(setting, seed=60), positions=True)


@crossed(TEXTLESS, [LEFT[0], LEFT[2]])
def test_cache_equals_recompute_without_a_mask(method, setting):
    """Law 4: nothing is hidden in the prompt, but rows of one length became unequal before the first layer."""
    check_decode(setting, method, bare(batch_of(setting.model, equal_rows(setting.model))))


def check_given(model: nn.Module, method: Method, batch: dict[str, Tensor], positions: Tensor | None = None) -> None:
    """Text comes through in order, the last prompt token last; every layer has the positions that it should.

    `positions`: position ids to call the model with; otherwise each token's is its place, padding counted.
    """
    with watching(model) as plain:
        model(**batch)
    with swiftvlm.prune(model, method) as trace, watching(model) as looks:
        model(**batch, position_ids=positions)
    assert (len(plain), len(looks)) == (LAYERS, LAYERS)
    if positions is None:
        positions = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    for row in range(len(batch["input_ids"])):
        visual = visual_slots(batch, row)
        words = [slot for slot in alive(batch, trace.last, row, -1) if slot not in visual]
        assert trace.text[row] == len(words)
        left = real_tokens(batch, row, looks[0].hidden, len(words) + trace.per_row[row][0])
        assert torch.equal(left[-1], plain[0].hidden[row, last_slot(batch, row)])
        rest = iter(left)
        assert all(any(torch.equal(plain[0].hidden[row, slot], token) for token in rest) for slot in words)
        for layer, look in enumerate(looks):
            ids = positions_at(model, method, batch, trace.last, row, positions[row], layer)
            expected = model.model.language_model.rotary_emb(look.hidden, ids[None])
            for given, wanted in zip(look.rotary, expected, strict=True):
                given = given.expand(len(look.hidden), -1, -1)
                there = real_tokens(batch, row, given, len(ids))
                torch.testing.assert_close(there, wanted[0], atol=1e-6, rtol=0)


def positions_at(
    model: nn.Module, method: Method, batch: dict[str, Tensor], run: Run, row: int, ids: Tensor, layer: int
) -> Tensor:
    """A row's positions at a layer: from cut to cut its tokens keep theirs, or are counted on from the first."""
    assert method.reduction is not None
    first = Stage(0, Said([]), positions=method.reduction.positions)
    stages = (first, *method.stages(swiftvlm.ModelShape.of(model)))
    slots = alive(batch, run, row, -1)
    ids = ids[slots]
    for number, stage in enumerate(stages[: stage_before(stages, layer) + 1] if run.kept else ()):
        if stage.positions == "gapped":
            ids = ids[0] + torch.arange(len(ids))
        left = alive(batch, run, row, number)
        ids, slots = ids[torch.isin(torch.tensor(slots), torch.tensor(left))], left
        # Tokens that stand for no patch ([CLS], one of all others) are counted, too, and no cut comes behind them.
        if stage.positions == "renumbered":
            ids = ids[0] + torch.arange(run.text[row] + run.per_row[row][stage.after])
    return ids


@crossed(METHODS, FOUR)
def test_text_stays_and_positions_are_as_stated(method, setting):
    """Law 5: padded batches; positions as the model counts them, and as `generate` gives them: without padding."""
    batch = mixed_batch(setting, seed=100)
    check_given(setting.model, method, batch, counted(batch["attention_mask"]) if setting.kv_heads == 2 else None)


@crossed(METHODS, FOUR)
def test_a_last_token_that_is_visual_stays(method, setting):
    """Law 5: prompts that end in an image, beside one that does not."""
    model, sizes = setting.model, [(20, 56)] * 2
    rows = [make_row(model, 110 + n, images=n, text=text, sizes=sizes) for n, text in ((1, 0), (2, 0), (1, 5))]
    check_given(model, method, batch_of(model, rows, side=setting.side))


@pytest.mark.parametrize("name", ["ivcprune", "divprune", "tome", "visionzip"])
@both
def test_a_level_cache_from_elsewhere_is_refused(family, name):
    """Cut before the first layer, or behind the last, all layers are equally short: the mask gives them away."""
    model, method = tiny(family), EVERY[name]
    batch = batch_of(model, [make_row(model, 70)])
    with swiftvlm.prune(model, method):
        cache = model(**batch).past_key_values
        longer = with_answer(batch, text_ids(1, 1))["attention_mask"]
        with pytest.raises(UnsupportedError, match=r"but the attention mask knows of .* is a copy"):
            model(input_ids=text_ids(1, 1), past_key_values=deepcopy(cache), attention_mask=longer)
    with swiftvlm.prune(model, "fastv"), pytest.raises(UnsupportedError, match=r"pruned inside another prune\(\)"):
        model(input_ids=text_ids(1, 1), past_key_values=cache, attention_mask=longer)
    with swiftvlm.prune(model, "fastv"):  # an ordinary cache is none of its business
        plain = tiny(family)(**batch_of(model, [make_row(model, 71, images=0)])).past_key_values
        model(input_ids=text_ids(1, 1), past_key_values=plain)


@every
@both
def test_two_frames_of_a_film_are_two_pictures(family, method):
    """Neighbours with one question and nearly the same picture: each is answered from its own, as when alone."""
    model = tiny(family)
    one = make_row(model, 72)
    pixels = one.pixels[0].clone()
    pixels[..., :PATCH, :PATCH] += 0.01
    rows = [one, replace(one, pixels=[pixels])]
    with swiftvlm.prune(model, method), torch.no_grad():
        together = model(**batch_of(model, rows)).logits[:, -1]
        alone = [model(**batch_of(model, [row])).logits[0, -1] for row in rows]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)
    assert not torch.equal(together[0], together[1])
