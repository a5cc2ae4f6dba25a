"""Law 6: a batch gives each row what the row gets alone: the same tokens kept, the same logits."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import swiftvlm
from swiftvlm.methods.base import Method
from tests.laws.cases import (
    MEASURED,
    METHODS,
    PRUNING,
    SETTINGS,
    Setting,
    answering,
    crossed,
    equal_rows,
    last_slot,
    mixed_rows,
    real_tokens,
    text_ids,
)
from tests.laws.replay import Recorded, Scored
from tests.support import Row, batch_of, make_row

CLOSE, TIE = 1e-5, 1e-6


class TieWarning(UserWarning):
    """A row was not compared, because a rounding error decides what it keeps."""


def check_batch(setting: Setting, method: Method, rows: list[Row], steps: int = 0) -> int:
    """Every row of the batch equals its own run: choices, last-token logits and answers. Returns the ties skipped."""
    model, answer = setting.model, text_ids(len(rows), steps)
    batch = batch_of(model, rows, side=setting.side)
    with swiftvlm.prune(model, method) as trace:
        together, later = answering(model, batch, answer)
    ties = 0
    for row, prompt in enumerate(rows):
        single, listening = batch_of(model, [prompt]), Recorded(method)
        with swiftvlm.prune(model, listening) as own:
            alone, after = answering(model, single, answer[row : row + 1])
        if tied(listening, own):
            ties += 1
            continue
        compare_choices(trace, own, row, last_slot(batch, row) - len(prompt.ids) + 1)
        assert trace.per_row[row] == own.per_row[0]
        last = real_tokens(batch, row, together.logits, alone.logits.shape[1])[-1]
        torch.testing.assert_close(last, alone.logits[0, -1], atol=CLOSE, rtol=0)
        torch.testing.assert_close(later[row], after[0], atol=CLOSE, rtol=0)
    if ties:
        warnings.warn(f"{ties} of {len(rows)} rows skipped: a score gap below {TIE} at a cut", TieWarning, stacklevel=2)
    return ties


def tied(listening: Recorded, own: swiftvlm.Trace) -> bool:
    """Whether any stage of the row's own run cut through (nearly) equal scores."""
    return any(listening.gap(stage, len(kept[0])) < TIE for stage, kept in enumerate(own.kept))


def compare_choices(trace: swiftvlm.Trace, own: swiftvlm.Trace, row: int, offset: int) -> None:
    """Kept, anchors and groups of a row, its slots counted without the padding on its left."""
    for name in ("kept", "anchors", "candidates"):
        together = [(stage[row] - offset).tolist() for stage in getattr(trace, name)]
        alone = [stage[0].tolist() for stage in getattr(own, name)]
        # A text-only row has no stages when it is alone, and empty ones beside other rows.
        assert together == (alone or [[]] * len(together)), name
    groups = [stage[row].tolist() for stage in trace.groups]
    assert groups == ([stage[0].tolist() for stage in own.groups] or [[]] * len(groups))


@crossed(METHODS | MEASURED, SETTINGS)
def test_a_batch_is_its_rows_alone(method, setting):
    """One, two and no image, unequal counts and lengths, both sides of padding; on the left with an answer behind."""
    check_batch(setting, method, mixed_rows(setting.model, seed=200), steps=2 if setting.side == "left" else 0)


@crossed(PRUNING, [SETTINGS[0], SETTINGS[5]])
def test_padding_far_longer_than_the_row(method, setting):
    """A short row beside one of many times its length, and rows that end in their image."""
    model = setting.model
    rows = [make_row(model, 210, text=1), make_row(model, 211, images=3, text=20), make_row(model, 212, text=0)]
    check_batch(setting, method, rows)


@crossed(PRUNING, [SETTINGS[3], SETTINGS[4]])
def test_rows_of_one_length(method, setting):
    """No padding and so no mask of the model's own, until unequal counts need one."""
    check_batch(setting, method, equal_rows(setting.model, seed=215), steps=2)


@crossed(PRUNING, [SETTINGS[2], SETTINGS[7]])
def test_the_order_of_rows_does_not_matter(method, setting):
    """The same rows the other way round keep the same tokens."""
    rows = mixed_rows(setting.model, seed=220)
    kept = []
    for order in (rows, rows[::-1]):
        with swiftvlm.prune(setting.model, method) as trace:
            setting.model(**batch_of(setting.model, order, side=setting.side))
        kept.append([[row.tolist() for row in stage] for stage in trace.kept])
    assert kept[0] == [stage[::-1] for stage in kept[1]]


@crossed(PRUNING, [SETTINGS[0], SETTINGS[7]])
def test_copies_of_a_row_keep_the_same(method, setting):
    """A prompt that is in the batch twice (sampling several answers) is given one choice."""
    row = make_row(setting.model, 230)
    with swiftvlm.prune(setting.model, method) as trace:
        setting.model(**batch_of(setting.model, [row, row, make_row(setting.model, 231, images=0), row]))
    for stage in trace.kept:
        assert [stage[copy].tolist() for copy in (1, 3)] == [stage[0].tolist()] * 2
        assert (len(stage[0]) > 0, len(stage[2])) == (True, 0)


class Indifferent:
    """A score to which all tokens are the same."""

    probe = None

    def rate(self, view: Any) -> Tensor:
        """0."""
        return torch.zeros(view.slot.shape)


def test_a_tie_is_skipped_and_reported():
    """Equal scores decide nothing: such rows are counted, and not compared."""
    model, method = SETTINGS[0].model, Scored(METHODS["swiftvlm"], Indifferent())
    rows = [make_row(model, 240), make_row(model, 241, images=0)]
    with pytest.warns(TieWarning, match="1 of 2 rows skipped"):
        assert check_batch(SETTINGS[0], method, rows) == 1
