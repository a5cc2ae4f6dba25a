"""From a finished prefill to its `Run`: everything the trace says, put together when somebody reads it."""

from collections.abc import Callable

from torch import Tensor

from swiftvlm.engine.prefill import Choice, Prefill
from swiftvlm.flops import exact_total, paper_total
from swiftvlm.plans import Plan
from swiftvlm.shape import ModelShape
from swiftvlm.trace import Run, Stages


def recorder(
    method: str, shape: ModelShape, prefill: Prefill, cache_bytes: int, states: dict[int, Tensor]
) -> Callable[[], Run]:
    """A function that builds the `Run`; it holds small index tensors only, no states of the whole sequence.

    `cache_bytes`: of the whole cache after the prefill. `states`: layer -> (batch, tokens, dim), as recorded.
    """
    choices, plans, prompt, cells = prefill.choices, prefill.plans, prefill.prompt, prefill.cells
    depths = tuple(sorted(prefill.stages))
    batch, length = prompt.input_ids.shape
    cached = sum(size * layers for size, layers in prefill.spans(length))
    # Bytes of one token in one layer, from the cache itself: right for any type and number of key heads.
    held = cache_bytes // max(batch * cached, 1)

    def build() -> Run:
        whole = [Plan(plan.layers, plan.visual, plan.text) for plan in plans]
        return Run(
            method=method,
            visual=prompt.visual,
            text=prompt.text,
            per_row=tuple(plan.tokens_per_layer for plan in plans),
            after=depths,
            kept=_chosen(choices, "kept"),
            anchors=_chosen(choices, "anchors"),
            candidates=_chosen(choices, "candidates"),
            groups=_groups(choices),
            cells=() if any(row is None for row in cells) else tuple(row for row in cells if row is not None),
            kv_bytes=cache_bytes,
            vanilla_kv_bytes=held * batch * length * shape.layers,
            flops=sum(exact_total(shape, plan) for plan in plans),
            vanilla_flops=sum(exact_total(shape, plan) for plan in whole),
            paper_flops=sum(paper_total(shape, plan) for plan in plans),
            states=states,
        )

    return build


def _chosen(choices: list[Choice], which: str) -> Stages:
    """Slots of the marked tokens: [stage][row]."""
    done = []
    for choice in choices:
        mask = choice.layout.candidates if which == "candidates" else choice.__dict__[which]
        slots, mask = choice.layout.slot.cpu(), mask.cpu()
        done.append(tuple(slots[row][mask[row]] for row in range(len(slots))))
    return tuple(done)


def _groups(choices: list[Choice]) -> Stages:
    """The group of each candidate: [stage][row]."""
    masks = [(choice.groups.cpu(), choice.layout.candidates.cpu()) for choice in choices]
    return tuple(tuple(groups[row][mask[row]] for row in range(len(groups))) for groups, mask in masks)
