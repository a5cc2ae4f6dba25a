"""Choosing pruning layers: the program against every possible choice, the paper's equations as properties."""

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swiftvlm
from swiftvlm import ModelShape, SwiftVLM
from swiftvlm.errors import SelectionError
from swiftvlm.selection import choose, curve, knee, unevenness
from swiftvlm.selection.choose import rated, records, steps
from swiftvlm.selection.split import split

# The worked example, a made-up profile of 32 layers, computed by hand: not data of the paper.
EXAMPLE = [0.46, 0.50, 0.66, 0.58, 0.60, 0.55, 0.62, 0.64, 0.67, 0.69, 0.86, 0.80, 0.87, 0.88, 0.97, 0.95]
EXAMPLE += [0.94, 0.93, 0.92, 0.93, 0.91, 0.90, 0.90, 0.89, 0.88, 0.88, 0.87, 0.86, 0.86, 0.85, 0.84, 0.83]

# Hundredths, so that ties happen and sums are exact in integers.
profiles = st.lists(st.integers(0, 100), min_size=4, max_size=14)


def slow_area(profile, layers):
    """U by adding up layer after layer, from the third to the last."""
    total, value = 0, profile[1]
    for t in range(2, len(profile)):  # the stretch from layer t to layer t + 1
        if t in layers:
            value = profile[t - 1]
        total += value
    return total


def slow_records(profile):
    """Layers better than all before them, without a running maximum."""
    return [i for i in range(3, len(profile) + 1) if all(profile[i - 1] > profile[j - 1] for j in range(2, i))]


def every_choice(profile, stages, runnable=False):
    """All sets of records of one size; runnable ones have a layer between the first two, or behind the only one."""
    found = combinations(slow_records(profile), stages)
    return [c for c in found if not runnable or (*c, len(profile) + 1)[1] > c[0] + 1]


@given(profiles, st.integers(1, 4), st.booleans())
def test_the_program_finds_the_best_of_all_choices(profile, stages, runnable):
    """Exact against brute force, ties broken towards earlier layers; refused where there is no choice."""
    every = every_choice(profile, stages, runnable)
    if not every:
        with pytest.raises(SelectionError):
            choose(profile, stages, runnable)
        return
    found = choose(profile, stages, runnable)
    assert found.area == max(slow_area(profile, layers) for layers in every)
    assert found.layers == min(layers for layers in every if slow_area(profile, layers) == found.area)


@given(profiles)
def test_eq_9_says_which_last_layer_is_better(profile):
    """U with the last layer j is at least U with i exactly if x_j (L - j) >= x_i (L - i) - x_p (j - i)."""
    depth = len(profile)
    for p, i, j in combinations(slow_records(profile), 3):
        better = slow_area(profile, (p, j)) >= slow_area(profile, (p, i))
        x = dict(enumerate(profile, 1))
        assert better == (x[j] * (depth - j) >= x[i] * (depth - i) - x[p] * (j - i))


@given(profiles)
def test_value_gains_and_steps_agree(profile):
    """P is the mean of y(t) over t = 2 ... L - 1, and a gain is what leaving the layer out would cost."""
    for layers in every_choice(profile, 2):
        found = rated(profile, layers)
        assert found.area == slow_area(profile, layers) == sum(steps(profile, layers)[1:-1])
        assert found.value == pytest.approx(found.area / (len(profile) - 2))
        for k, layer in enumerate(layers):
            without = tuple(other for other in layers if other != layer)
            assert found.gains[k] == found.area - slow_area(profile, without)


def test_worked_example():
    """Records, the best layers for each number of stages, and the knee, by hand."""
    assert records(EXAMPLE) == (3, 9, 10, 11, 13, 14, 15)
    found = curve(EXAMPLE)
    assert [choice.layers for choice in found[:4]] == [(15,), (3, 15), (3, 11, 15), (3, 10, 11, 15)]
    assert [round(choice.area, 2) for choice in found[:4]] == [22.99, 24.91, 25.71, 25.74]
    assert round(found[2].value, 3) == 0.857
    assert knee(EXAMPLE).layers == (3, 11, 15)


def test_layers_that_cannot_run_are_avoided():
    """Behind layer 3 and before layer 4 is one place; the program may be told so."""
    profile = [0, 0, 5, 9, 6, 10, 3]
    assert choose(profile, 2).layers == (3, 4)
    assert choose(profile, 2, runnable=True).layers == (4, 6)
    assert curve([0, 0, 5, 9, 1], runnable=True) == (choose([0, 0, 5, 9, 1], 1),)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: choose([0.1, 0.2, 0.3], 1), "more than 3 layers to choose from, got 3"),
        (lambda: choose([0.1, 0.2, float("nan"), 0.3], 1), "layer 3 of the profile is NaN"),
        (lambda: choose(EXAMPLE, 8), "7 layers better than all before them .* 8 pruning layers cannot be chosen"),
        (lambda: choose(EXAMPLE, 0), "0 pruning layers cannot be chosen"),
        (lambda: choose([0, 0, 5, 9, 1], 2, runnable=True), "cannot follow the first directly"),
        (lambda: curve([0.5, 0.9, 0.1, 0.2]), r"no layer from 3 on is better than layer 2 \(0.900\)"),
        (lambda: rated(EXAMPLE, (11, 3)), r"ascend between 3 and 32, got \(11, 3\)"),
    ],
)
def test_errors_say_what_is_there(call, says):
    """Every refusal names the figure it is about."""
    with pytest.raises(SelectionError, match=says):
        call()


def test_what_cannot_run_is_not_chosen():
    """A first stage acts behind its layer, so it cannot be the last one; the paper's program does not know this."""
    profile = [0.5, 0.9, 0.1, 0.2, 0.3, 0.95]
    assert choose(profile, 1).layers == (6,)
    with pytest.raises(SelectionError, match="no 1 can run behind each other"):
        knee(profile, runnable=True)
    assert knee([0.5, 0.6, 0.7, 0.7, 0.7, 0.95], runnable=True).layers[0] == 3


def brute(profiles, average, stages, merged):
    """Every schedule there is, layer by layer."""
    depth, best = len(next(iter(profiles.values()))), None
    for layers in combinations(range(1, depth + 1), stages):
        after = [layers[0], *(layer - 1 for layer in layers[1:])]
        if any(a >= b for a, b in pairwise(after)):
            continue
        for shares in product(profiles, repeat=stages):
            cost, worth = 0.0, 0.0
            for layer in range(depth):
                stage = sum(layer >= start for start in after) - 1
                last = stage == stages - 1
                cost += 1.0 if stage < 0 else shares[stage] if last else min(1.0, shares[stage] / (1 - merged))
                worth += 1.0 if stage < 0 else profiles[shares[stage]][layers[stage] - 1]
            if cost / depth <= average + 1e-9 and (best is None or worth / depth > best):
                best = worth / depth
    return best


@given(
    values=st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=2, max_size=3),
    average=st.floats(0.2, 0.9),
    stages=st.integers(1, 3),
    merged=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_layers_and_split_together_are_the_best_there_are(values, average, stages, merged):
    """Against every schedule; the counts that follow keep the average."""
    profiles = dict(zip((0.1, 0.25, 0.5), values, strict=False))
    best = brute(profiles, average, stages, merged)
    if best is None:
        with pytest.raises(SelectionError, match="cannot be met by"):
            split(profiles, average, stages, merged)
        return
    found = split(profiles, average, stages, merged)
    assert found.value == pytest.approx(best)
    assert found.average <= average + 1e-9
    method = SwiftVLM(layers=found.layers, counts=found.counts(576, merged), merged_share=merged)
    plan = swiftvlm.plan(method, None, ModelShape(layers=6), 576)
    assert plan.average_tokens <= 576 * found.average + 1e-6
    assert plan.average_tokens >= 576 * found.average - 2 * stages


def test_splits_need_profiles_of_one_model():
    """Different depths, and shares that are no shares."""
    with pytest.raises(SelectionError, match="one depth"):
        split({0.1: [0.5] * 4, 0.2: [0.5] * 5}, 0.5)
    with pytest.raises(SelectionError, match=r"shares in \(0, 1\)"):
        split({1.0: [0.5] * 4}, 0.5)


@given(profiles)
def test_unevenness_is_what_rising_lacks(profile):
    """Against all pairs; none in a profile that never falls."""
    found = unevenness(profile)
    x = dict(enumerate(profile, 1))
    pairs = [(i, j) for j in range(3, len(profile) + 1) for i in range(2, j) if x[i] > x[j]]
    assert found.worse == len({j for _, j in pairs})
    assert found.fall == max((x[i] - x[j] for i, j in pairs), default=0)
    assert (found.between is None) == (not pairs)
    assert found.between is None or found.between in pairs
    assert unevenness(sorted(profile)).worse == 0
