"""The engine against the slow reference: kept tokens, anchors and groups equal, logits to 1e-5, prefill and 8 steps.

The reference shares no code with the engine: one row at a time, full-size masks, loops over tokens and groups.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import swiftvlm
from swiftvlm.families import find_family
from swiftvlm.methods.dart import Dart
from swiftvlm.methods.fastv import FastV
from swiftvlm.methods.feather import Feather
from swiftvlm.methods.pdrop import PDrop
from swiftvlm.methods.sparsevlm import SparseVLM, SparseVLMPlus
from tests.reference.slow_field import slow_dart, slow_feather, slow_pdrop, slow_sparsevlm
from tests.reference.slow_methods import SlowResult, embed_row, slow_fastv, slow_swiftvlm
from tests.support import IMAGE, LAYERS, Row, batch_of, features_of, make_row, tiny

STEPS, TIE, CLOSE = 8, 1e-6, 1e-5
EXAMPLES = settings(
    max_examples=21,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(frozen=True)
class Case:
    """One drawn situation: a model, a batch of prompts, and how it is padded."""

    family: str
    kv_heads: int
    attn: str
    rows: tuple[tuple[int, int, int], ...]  # (seed, images, text)
    side: str


CASES = st.builds(
    Case,
    family=st.sampled_from(["llava", "llava_next"]),
    kv_heads=st.sampled_from([4, 2]),
    attn=st.sampled_from(["sdpa", "eager"]),
    rows=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=3, unique=True
    ).map(tuple),
    side=st.sampled_from(["left", "right"]),
)
# What every method inside the language model meets: either family, alone and in a padded batch.
SITUATIONS = (
    Case("llava", 4, "sdpa", ((11, 1, 6),), "left"),
    Case("llava", 2, "eager", ((12, 2, 4), (13, 1, 7), (14, 0, 9)), "left"),
    Case("llava_next", 2, "sdpa", ((15, 1, 5),), "left"),
    Case("llava_next", 4, "eager", ((16, 1, 8), (17, 2, 3), (18, 0, 2)), "left"),
)
DEPTHS = st.lists(st.integers(1, LAYERS - 1), min_size=1, max_size=3, unique=True).map(sorted)


def everywhere(**fields: Any) -> Callable[[Any], Any]:
    """Beside what is drawn: all `SITUATIONS`, with these fields of the method."""

    def add(test: Any) -> Any:
        for case in SITUATIONS:
            test = example(case=case, **fields)(test)
        return test

    return add


@st.composite
def swift_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Legal fields of SwiftVLM: depths, counts and every switch."""
    depths = draw(DEPTHS)  # layers already run; the paper's numbers are one more from the second stage on
    counts: list[int] = []
    for _ in depths:
        counts += [draw(st.integers(1, 24)), draw(st.integers(1, 8))]
    return {
        "layers": tuple(depth if i == 0 else depth + 1 for i, depth in enumerate(depths)),
        "counts": tuple(counts[:-1]),
        "rest": draw(st.sampled_from(["bypass", "bypass", "merge", "drop"])),
        "anchors": draw(st.sampled_from(["strided", "strided", "top"])),
        "refine": draw(st.sampled_from([0, 0, 1, 2])),
        "merged_position": draw(st.sampled_from(["anchor", "mean"])),
        "positions": draw(st.sampled_from(["original", "original", "renumbered"])),
        "softmax_over": draw(st.sampled_from(["all", "visual"])),
        "rope": draw(st.sampled_from([True, True, False])),
    }


SWIFT: dict[str, Any] = {"layers": (2, 4, 6), "counts": (6, 3, 5, 2, 4), "rest": "bypass"}


def decode(model: torch.nn.Module, batch: dict[str, Tensor], answer: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Prefill logits, and the logits of each of the answer's tokens fed one at a time to the cache."""
    out = model(**batch)
    steps, mask = [], batch["attention_mask"]
    for token in answer.T:
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        step = model(input_ids=token[:, None], attention_mask=mask, past_key_values=out.past_key_values)
        steps.append(step.logits[:, -1])
    return out.logits, steps


def tied(slow: SlowResult, kept: list[int], stage: int) -> bool:
    """Whether the reference's scores at this stage are too close at the cut to name a winner."""
    scores = slow.scores[stage]
    inside = [scores[slot] for slot in kept if slot in scores]
    outside = [score for slot, score in scores.items() if slot not in set(kept)]
    gap = min(inside) - max(outside) if inside and outside else TIE
    # Were something else than scores decisive, every cut would look like a tie, and nothing would be compared.
    assert gap >= 0
    return gap < TIE


def check(case: Case, method: swiftvlm.methods.base.Method, slow: Any, ties: bool = True) -> None:
    """Run the batch through the engine and every row through `slow`, and compare all there is.

    `ties`: a choice by rank, where two scores may be too close to tell apart.
    """
    model = tiny(case.family, case.kv_heads, case.attn)
    rows = [make_row(model, seed, images=images, text=text) for seed, images, text in case.rows]
    batch = batch_of(model, rows, side=case.side)
    steps = STEPS if case.side == "left" else 0  # generation pads on the left
    answer = torch.randint(2, IMAGE, (len(rows), steps), generator=torch.Generator().manual_seed(case.rows[0][0]))
    with swiftvlm.prune(model, method) as trace:
        prefill, later = decode(model, batch, answer)
    length = batch["input_ids"].shape[1]
    assert len(trace.kept) == (
        len(method.stages(swiftvlm.ModelShape.of(model))) if any(row.pixels for row in rows) else 0
    )
    for index, row in enumerate(rows):
        reference = slow(model, *reference_inputs(model, row, answer[index]))
        offset = length - len(row.ids) if case.side == "left" else 0
        for stage in range(len(trace.kept)):
            if ties and tied(reference, reference.kept[stage], stage):
                event("tie at the cut")
                return
            assert (trace.kept[stage][index] - offset).tolist() == reference.kept[stage]
            assert (trace.anchors[stage][index] - offset).tolist() == reference.anchors[stage]
            assert groups(trace, stage, index, offset) == reference.groups[stage]
        compare_logits(prefill[index], [step[index] for step in later], reference, row, case.side)


def groups(trace: Any, stage: int, row: int, offset: int) -> dict[int, int]:
    """Slot -> group of every grouped token, as the reference writes it."""
    slots, numbers = trace.candidates[stage][row] - offset, trace.groups[stage][row]
    return {int(slot): int(number) for slot, number in zip(slots, numbers, strict=True) if number >= 0}


def reference_inputs(model: torch.nn.Module, row: Row, answer: Tensor) -> tuple[Tensor, Tensor, int]:
    """Embeddings of the prompt and the answer behind it, the visual mask, and the prompt's length."""
    prompt = embed_row(model, torch.tensor(row.ids), **features_of(model, row))
    embeds = torch.cat([prompt, model.model.language_model.embed_tokens(answer)])
    return embeds, torch.tensor(row.ids + answer.tolist()) == IMAGE, len(row.ids)


def compare_logits(prefill: Tensor, later: list[Tensor], slow: SlowResult, row: Row, side: str) -> None:
    """The last prompt token's logits (where padding on the right ends, the last survivor's) and every step's."""
    end = len(row.ids) - 1
    if side == "left":
        torch.testing.assert_close(prefill[-1], slow.logits[end], atol=CLOSE, rtol=0)
    else:  # the row's own padding stays behind it, so the last prompt token is one of the rows
        assert (prefill - slow.logits[end]).abs().amax(-1).min() < CLOSE
    for step, logits in enumerate(later):
        torch.testing.assert_close(logits, slow.logits[end + 1 + step], atol=CLOSE, rtol=0)


@given(case=CASES, after=st.integers(1, LAYERS - 1), keep=st.integers(1, 40))
@everywhere(after=3, keep=7)
@EXAMPLES
def test_fastv_equals_the_slow_reference(case: Case, after: int, keep: int) -> None:
    """FastV: kept tokens and logits, any depth and count, batches padded on either side."""
    check(case, FastV(after=after, counts=(keep,)), lambda *inputs: slow_fastv(*inputs, after=after, keep=keep))


@given(case=CASES, fields=swift_fields())
@everywhere(fields=SWIFT)
@EXAMPLES
def test_swiftvlm_equals_the_slow_reference(case: Case, fields: dict[str, Any]) -> None:
    """SwiftVLM and every switch of its Table 3: kept, anchors, groups and logits."""
    slow_fields = dict(fields)
    mode = slow_fields.pop("rest")
    check(case, swiftvlm.SwiftVLM(**fields), lambda *inputs: slow_swiftvlm(*inputs, mode=mode, **slow_fields))


@given(case=CASES, fields=swift_fields(), fates=st.tuples(st.booleans(), st.booleans()))
@everywhere(fields=SWIFT, fates=(True, False))
@EXAMPLES
def test_mixed_fates_equal_the_slow_reference(case: Case, fields: dict[str, Any], fates: tuple[bool, bool]) -> None:
    """A bypass at some stages and a drop at others (ambiguity B)."""
    stages = len(fields["layers"])
    bypass = (*fates[: stages - 1], True)
    rest = tuple("bypass" if stays else "drop" for stays in bypass[:-1])
    slow_fields = {name: value for name, value in fields.items() if name != "rest"}
    method = swiftvlm.SwiftVLM(**{**fields, "rest": rest})
    check(case, method, lambda *inputs: slow_swiftvlm(*inputs, bypass=bypass, **slow_fields))


@given(
    case=CASES,
    after=DEPTHS,
    counts=st.lists(st.integers(1, 24), min_size=3, max_size=3),
    positions=st.sampled_from(["renumbered", "renumbered", "original"]),
)
@everywhere(after=[2, 4, 5], counts=[9, 5, 2], positions="renumbered")
@EXAMPLES
def test_pdrop_equals_the_slow_reference(case: Case, after: list[int], counts: list[int], positions: Any) -> None:
    """PyramidDrop: kept tokens and logits, generated tokens numbered as each layer holds them."""
    kept, depths = tuple(counts[: len(after)]), tuple(after)
    method = PDrop(after=depths, counts=kept, positions=positions)
    check(case, method, lambda *inputs: slow_pdrop(*inputs, layers=depths, counts=kept, positions=positions))


@given(case=CASES, after=DEPTHS, counts=st.lists(st.integers(1, 24), min_size=3, max_size=3), stride=st.integers(1, 4))
@everywhere(after=[2, 4], counts=[9, 4, 1], stride=2)
@EXAMPLES
def test_feather_equals_the_slow_reference(case: Case, after: list[int], counts: list[int], stride: int) -> None:
    """FEATHER: kept tokens and logits; the grid is read off the model's own cells."""
    kept, depths = tuple(counts[: len(after)]), tuple(after)

    def slow(model: Any, embeds: Tensor, visual: Tensor, length: int) -> SlowResult:
        slots = visual[:length].nonzero()[:, 0]
        cells = find_family(model).cells(model, embeds[slots])
        assert cells is not None
        on_grid = ((cells[:, 2:] >= 0) & (cells[:, 2:] % stride == 0)).all(1)
        grid = set(slots[on_grid].tolist())
        made = slow_feather(model, embeds, visual, length, after=depths, counts=kept, grid=grid)
        # The grid is kept whatever its scores, unless it alone is too large: ties are among those that compete.
        protected = grid & made.scores[0].keys()
        crowded = len(protected) > kept[0]
        made.scores[0] = {slot: score for slot, score in made.scores[0].items() if (slot in protected) == crowded}
        return made

    check(case, Feather(after=depths, counts=kept, stride=stride), slow)


@given(case=CASES, after=st.integers(1, LAYERS - 1), keep=st.integers(1, 40), pivots=st.integers(1, 5))
@everywhere(after=2, keep=9, pivots=2)
@EXAMPLES
def test_dart_equals_the_slow_reference(case: Case, after: int, keep: int, pivots: int) -> None:
    """DART: kept tokens and logits, whatever comes out uneven."""
    method = Dart(after=after, counts=(keep,), pivots=pivots)
    check(case, method, lambda *inputs: slow_dart(*inputs, after=after, keep=keep, pivots=pivots), ties=False)


@given(case=CASES, after=DEPTHS, counts=st.lists(st.integers(1, 14), min_size=3, max_size=3, unique=True).map(sorted))
@everywhere(after=[2, 4], counts=[3, 7, 11])
@settings(EXAMPLES, max_examples=6)
def test_sparsevlm_equals_the_slow_reference(case: Case, after: list[int], counts: list[int]) -> None:
    """SparseVLM: raters, density peaks, merged tokens behind the kept ones; kept, anchors, groups and logits."""
    depths, kept = tuple(after), tuple(counts[::-1][: len(after)])

    def slow(model: Any, embeds: Tensor, visual: Tensor, length: int) -> SlowResult:
        there, made = int(visual[: length - 1].sum()), []
        for keep in kept:
            left = int(0.3 * (there - keep)) + 1  # recycled
            made.append((keep, int(left / 10) + 1))
            there = keep + made[-1][1]
        return slow_sparsevlm(model, embeds, visual, length, after=depths, counts=tuple(made))

    check(case, SparseVLM(after=depths, counts=kept), slow)


@given(case=CASES, after=DEPTHS, counts=st.lists(st.integers(1, 14), min_size=3, max_size=3, unique=True).map(sorted))
@everywhere(after=[2, 4], counts=[3, 7, 11])
@settings(EXAMPLES, max_examples=4)
def test_sparsevlm_plus_equals_the_slow_reference(case: Case, after: list[int], counts: list[int]) -> None:
    """SparseVLM+: raters only."""
    depths, kept = tuple(after), tuple(counts[::-1][: len(after)])
    wanted = tuple((count, 0) for count in kept)

    def slow(model: Any, embeds: Tensor, visual: Tensor, length: int) -> SlowResult:
        return slow_sparsevlm(model, embeds, visual, length, after=depths, counts=wanted, version="plus")

    check(case, SparseVLMPlus(after=depths, counts=kept), slow)
