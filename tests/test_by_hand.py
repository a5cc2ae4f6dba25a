"""Whole methods on at most twelve tokens, worked by hand, in the model of `test_slow_first`: nothing else happens."""

from typing import Any

import pytest

from swiftvlm.methods.dart import Dart
from swiftvlm.methods.feather import Feather
from swiftvlm.methods.sparsevlm import SparseVLM, SparseVLMPlus
from tests.reference.slow_field import slow_dart, slow_feather, slow_sparsevlm
from tests.test_slow_first import ASKS, by_hand, kept, run, state


def test_feather_by_hand(monkeypatch):
    """Two images of 2 x 2 patches A to D and E to H in slots 1 to 8; A and E are on the grid of every second patch.

    Weights in head 1: 9, 3, 1, 5, 1, 2, 1, 1, 23 in all; in head 2: 1, 1, 12, 1, 6, 3, 1, 1, 26 in all. Twice the mean
    share: C .505, A .430, E .274, D .256. A and E stay for the grid, C and D as the best others. Of these four, 16 and
    20 in all: C .0625 + .6, A .5625 + .05 lead. Over all keys, the first token weighing 94 in head 2, A and D would.
    """
    weights = [(9, 1), (3, 1), (1, 12), (5, 1), (1, 6), (2, 3), (1, 1), (1, 1)]
    states = [state(1, 94), *(state(*pair) for pair in weights), state(asks=1.0)]
    model, fields = by_hand(4, (ASKS, ASKS)), {"after": (1, 2), "counts": (4, 2)}
    trace, *inputs = run(monkeypatch, model, Feather(stride=2, **fields), states, range(1, 9))
    slow = slow_feather(model, *inputs, grid={1, 5}, **fields)
    assert kept(trace) == slow.kept == [[1, 3, 4, 5], [1, 3]]
    assert slow.scores[1] == pytest.approx({1: 0.30625, 3: 0.33125, 4: 0.18125, 5: 0.18125}, abs=1e-4)


def test_dart_by_hand(monkeypatch):
    """Slots 1 to 6 are visual, 7 and 8 text. The largest keys are those of slots 3 and 8, which are the pivots.

    Of the set {3, 8} slot 8 comes first (the eighth of eight places is the first). It looks the way of the topic and
    takes what looks away most, slot 5 (a dot product of 1.07; 6 has 2.46). Slot 3 looks the way of the kind; 5, which
    would be its choice, too (.92), is taken, so it takes 4 (2.79; the others 4.65 and more). The other way round 5
    and 6 would stay beside 3.
    """
    ways: list[dict[str, Any]] = [{}, {}, {"kind": 2.0}, {"kind": -1.0}, {"kind": -1.4, "topic": -1.4}, {"topic": -1.2}]
    visual = [state(9 if slot == 3 else 1, **way) for slot, way in enumerate(ways, 1)]
    states = [state(), *visual, state(2), state(5, topic=2.0)]
    model = by_hand(3, (ASKS, ASKS))
    trace, *inputs = run(monkeypatch, model, Dart(after=1, counts=(3,), pivots=1), states, range(1, 7))
    slow = slow_dart(model, *inputs, after=1, keep=3, pivots=1)
    assert kept(trace) == slow.kept == [[3, 4, 5]]
    assert slow.scores[0][3] == pytest.approx(2 * 0.5493, abs=1e-4)  # ln 9 / 4 in either head


RAW = {1: 2, 2: 6, 3: 2, 4: 0.05, 5: 1, 6: 4}  # in head 1
PULL = {1: 1.960, 2: 1.284, 3: 0.346, 4: 0.010, 5: 0.584, 6: 1.540}  # 1 + cos 6, 1 + cos 5, ... 1 + cos 1


def test_sparsevlm_plus_by_hand(monkeypatch):
    """Slots 1 to 6 are visual, slot 7 is about them and rates, slot 8 is the last. One of the two heads is asked.

    A head of four turns one pair of entries by a radian a position and the other not at all: two vectors of ones have
    the logit (2 cos(d) + 2) / 2 at distance d. Head 1 weighs 2, 6, 2, .05, 1 and 4, and 1 for slots 0 and 7: 17.05 in
    all. Divided, .060, .274, .339, .28, .100 and .152 are left, 1.2 together, of which 3, 4 and 2 lead. Head 2 looks at
    slot 0 (200) and slot 5 (60): .4 together, so it is not asked, or 5 would lead. Undivided, 2, 6 and 1 would.
    """
    visual = [state(weight, 60 if slot == 5 else 0.01, topic=2.0) for slot, weight in RAW.items()]
    states = [state(1, 200), *visual, state(asks=1.0, topic=2.0), state()]
    model = by_hand(3, (ASKS, ASKS))
    method = SparseVLMPlus(after=(1,), counts=(3,))
    trace, *inputs = run(monkeypatch, model, method, states, range(1, 7))
    slow = slow_sparsevlm(model, *inputs, after=(1,), counts=((3, 0),), version="plus")
    assert kept(trace) == slow.kept == [[2, 3, 4]]
    wanted = {slot: weight / 17.05 / PULL[slot] for slot, weight in RAW.items()}
    assert slow.scores[0] == pytest.approx(wanted, rel=0.02)


def test_sparsevlm_recycles_by_hand(monkeypatch):
    """Slots 1 to 8 are visual, 9 rates. Weights 3, 4, 9, 1, 2, 6, 1 and 8: slots 3, 8 and 6 stay.

    Of the five dropped the best two (3 x 5 / 10, and one more), 2 and 1, become one: the mean of their states, which
    weighs the root of 12. It moves behind the kept ones: slots 1, 3, 6 and 8 (the centre's and theirs) hold 9, 6, 8 and
    that. At the second cut 9 and 8 lead.
    """
    visual = [state(weight, topic=2.0) for weight in (3, 4, 9, 1, 2, 6, 1, 8)]
    states = [state(), *visual, state(asks=1.0, topic=2.0), state()]
    model = by_hand(4, (ASKS, ASKS))
    method = SparseVLM(after=(1, 2), counts=(3, 2))
    trace, *inputs = run(monkeypatch, model, method, states, range(1, 9))
    slow = slow_sparsevlm(model, *inputs, after=(1, 2), counts=((3, 1), (2, 1)))
    assert kept(trace) == slow.kept == [[3, 6, 8], [1, 6]]
    assert trace.anchors[0][0].tolist() == slow.anchors[0]
