"""Law 4: decoding with the cache equals prefilling the longer sequence with the same tokens kept."""

from dataclasses import dataclass, replace
from itertools import permutations

import pytest
import torch
from torch import Tensor

import swiftvlm
from swiftvlm.errors import UnsupportedError
from swiftvlm.methods.base import Method
from swiftvlm.methods.pdrop import PDrop
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Stage
from swiftvlm.trace import Run
from tests.laws.cases import (
    CACHED,
    LEFT,
    PRUNING,
    RIGHT,
    SETTINGS,
    SWIFT,
    Setting,
    answering,
    bare,
    counted,
    crossed,
    equal_rows,
    every_pruning,
    mixed_batch,
    stages_of,
    text_ids,
    with_answer,
)
from tests.laws.replay import Replay
from tests.support import IMAGE, batch_of, make_row, tiny

CLOSE = 1e-5
STEPS = 5


def check_decode(
    setting: Setting,
    method: Method,
    batch: dict[str, Tensor],
    pieces: tuple[int, ...] = (),
    positions: bool = False,
    close: float = CLOSE,
) -> None:
    """Logits of every answered token, fed to the cache, are those of one prefill under `Replay`; so are its choices."""
    model, answer = setting.model, text_ids(len(batch["input_ids"]), STEPS, seed=1)
    with swiftvlm.prune(model, method) as trace:
        _, steps = answering(model, batch, answer, pieces, positions)
    longer = with_answer(batch, answer)
    given = {"position_ids": counted(longer["attention_mask"])} if positions else {}
    with swiftvlm.prune(model, Replay(trace.last, stages_of(method, model))) as again:
        whole = model(**longer, **given).logits[:, -STEPS:]
    same_choices(again.last, trace.last)
    torch.testing.assert_close(steps, whole, atol=close, rtol=0)


def same_choices(again: Run, run: Run) -> None:
    """Kept tokens, anchors and groups, among the tokens that the first run could choose from."""
    assert len(again.kept) == len(run.kept)
    for number, stage in enumerate(run.candidates):
        for row, candidates in enumerate(stage):
            slots = again.candidates[number][row]
            known = torch.isin(slots, candidates)
            assert torch.equal(slots[known], candidates)
            assert torch.equal(again.groups[number][row][known], run.groups[number][row])
            assert torch.equal(again.anchors[number][row], run.anchors[number][row])
            kept = again.kept[number][row]
            assert torch.equal(kept[torch.isin(kept, candidates)], run.kept[number][row])


@crossed(CACHED, LEFT)
@pytest.mark.parametrize("pieces", [(), (1, 3, 1)], ids=["one by one", "several at once"])
def test_cache_equals_recompute(method, setting, pieces):
    """Batches of one, two and no image, padded on the left."""
    check_decode(setting, method, mixed_batch(setting, seed=50, extra=1), pieces)


@crossed(CACHED, RIGHT)
def test_cache_equals_recompute_behind_right_padding(method, setting):
    """Padding stays between prompt and answer; position ids skip it, as `generate` gives them."""
    check_decode(setting, method, mixed_batch(setting, seed=60), positions=True)


@crossed({name: CACHED[name] for name in CACHED if name not in ("renumbered", "pdrop", "sparsevlm")}, RIGHT)
def test_cache_equals_recompute_where_padding_counts_as_distance(method, setting):
    """Without position ids, the model's own positions count padding; renumbered ones cannot, so they stay out here."""
    check_decode(setting, method, mixed_batch(setting, seed=60))


@crossed(CACHED, LEFT)
def test_cache_equals_recompute_without_a_mask(method, setting):
    """The kernel knows only "causal", also where rows of one length became unequal behind a cut."""
    check_decode(setting, method, bare(batch_of(setting.model, equal_rows(setting.model))))


@pytest.mark.parametrize(
    "fields",
    [
        {"rest": ("drop", "bypass")},
        {"rest": ("bypass", "merge"), "merged_position": "mean"},
        {"rest": "merge", "positions": "renumbered", "anchors": "top"},
        {"layers": (1, 3, 7), "rope": False, "refine": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("setting", [LEFT[1], LEFT[2]], ids=str)
def test_every_mix_of_fates_decodes(fields, setting):
    """Other fates, anchors and positions than the defaults."""
    check_decode(setting, swiftvlm.SwiftVLM(**{**SWIFT, **fields}), mixed_batch(setting, seed=70))


@dataclass(frozen=True)
class Placed(PDrop):
    """PyramidDrop's cuts, each with its own way with positions."""

    ways: tuple[str, ...] = ()

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """Three stages, one for each of `ways`."""
        return tuple(replace(stage, positions=way) for stage, way in zip(super().stages(shape), self.ways, strict=True))


@pytest.mark.parametrize("ways", list(permutations(["original", "renumbered", "gapped"])), ids="-".join)
@pytest.mark.parametrize("setting", [LEFT[0], LEFT[3]], ids=str)
def test_positions_once_moved_stay_moved(ways, setting):
    """A stage that leaves positions as they are leaves them as an earlier stage made them."""
    check_decode(setting, Placed(after=(2, 4, 5), counts=(6, 4, 2), ways=ways), mixed_batch(setting, seed=75))


# Where merged tokens go behind all visual ones, a last visual token that became an ordinary one stands before them.
@pytest.mark.parametrize("name", [name for name in CACHED if name not in ("sparsevlm", "vanilla")])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_prompt_that_ends_in_an_image_decodes(name, family):
    """Its last visual token counts as text while it is the last one, and stays when text has come behind it."""
    method = CACHED[name]
    setting = Setting(family, 2, "sdpa", "left")
    rows = [make_row(setting.model, 80, text=0, images=2, sizes=[(28, 28), (20, 56)])]
    check_decode(setting, method, batch_of(setting.model, rows))


@crossed(CACHED, LEFT)
def test_generate_equals_recompute(method, setting):
    """The logits that `generate` itself saw, for the tokens that it chose."""
    model, batch = setting.model, mixed_batch(setting, seed=90)
    with swiftvlm.prune(model, method) as trace:
        out = model.generate(
            **batch,
            max_new_tokens=STEPS,
            do_sample=False,
            suppress_tokens=[IMAGE],
            output_logits=True,
            return_dict_in_generate=True,
        )
    length = batch["input_ids"].shape[1]
    longer = with_answer(batch, out.sequences[:, length:])
    with swiftvlm.prune(model, Replay(trace.last, stages_of(method, model))):
        whole = model(**longer, position_ids=counted(longer["attention_mask"])).logits[:, -STEPS - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), whole, atol=CLOSE, rtol=0)


@crossed(PRUNING, [SETTINGS[0], SETTINGS[7]])
def test_a_replay_of_other_tokens_is_seen(method, setting):
    """The check above can fail: with one token swapped for another, the recompute differs."""
    model, answer = setting.model, text_ids(1, STEPS)
    batch = batch_of(model, [make_row(model, 95)])
    with swiftvlm.prune(model, method) as trace:
        _, steps = answering(model, batch, answer)
    kept, candidates = trace.kept[-1][0], trace.candidates[-1][0].tolist()
    kept[0] = next(slot for slot in candidates if slot not in kept.tolist())
    with swiftvlm.prune(model, Replay(trace.last, stages_of(method, model))):
        whole = model(**with_answer(batch, answer)).logits[:, -STEPS:]
    assert (steps - whole).abs().max() > 10 * CLOSE


@every_pruning
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_generating_without_the_cache_is_refused(family, method):
    """Every step would choose its tokens anew: refused, with the way out."""
    model = tiny(family)
    batch = batch_of(model, [make_row(model, 0)])
    with swiftvlm.prune(model, method), pytest.raises(UnsupportedError, match="use_cache"):
        model.generate(**batch, max_new_tokens=2, use_cache=False)
