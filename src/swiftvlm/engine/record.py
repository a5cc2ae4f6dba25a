"""From a finished prefill to its `Run`: everything the trace says, put together when somebody reads it."""

from collections.abc import Callable, Sequence

from torch import Tensor

from swiftvlm.amounts import Number
from swiftvlm.engine.layout import Choice
from swiftvlm.engine.prefill import Prefill
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
    choices, plans, prompt, before = prefill.choices, prefill.plans, prefill.prompt, prefill.before
    # What `settle` changes is read now; `build` may run much later.
    depths = tuple(sorted(prefill.stages)) if before is None else (0, *sorted(prefill.stages))
    batch, short = prompt.input_ids.shape
    length = short if before is None else before.length
    cached = sum(size * layers for size, layers in prefill.spans(short))
    # Bytes of one token in one layer, from the cache itself: right for any type and number of key heads.
    held = cache_bytes // max(batch * cached, 1)
    origin, cells = (None, prefill.cells) if before is None else (before.origin, prefill.before.cells)

    def build() -> Run:
        return Run(
            method=method,
            visual=tuple(plan.visual for plan in plans),
            text=prompt.text,
            per_row=tuple(plan.tokens_per_layer for plan in plans),
            after=depths,
            kept=_chosen(choices, "kept", origin),
            anchors=_chosen(choices, "anchors", origin),
            candidates=_chosen(choices, "candidates", origin),
            groups=_groups(choices),
            cells=_known(cells),
            kv_bytes=cache_bytes,
            vanilla_kv_bytes=held * batch * length * shape.layers,
            flops=_sum(exact_total, shape, plans),
            vanilla_flops=_sum(exact_total, shape, _unpruned(plans)),
            paper_flops=_sum(paper_total, shape, plans),
            states=states,
        )

    return build


def _sum(flops: Callable[[ModelShape, Plan], Number], shape: ModelShape, plans: Sequence[Plan]) -> Number:
    """FLOPs of all rows."""
    return sum(flops(shape, plan) for plan in plans)


def _unpruned(plans: Sequence[Plan]) -> list[Plan]:
    return [Plan(plan.layers, plan.visual, plan.text) for plan in plans]


def _known(cells: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Where every row's tokens stand, each (visual, 4); nothing where one row's are unknown."""
    there = tuple(row for row in cells if row is not None)
    return there if len(there) == len(cells) else ()


def _chosen(choices: list[Choice], which: str, origin: Tensor | None) -> Stages:
    """Slots of the marked tokens: [stage][row]; `origin`: whom each token behind a cut before layer 0 stands for."""
    done = []
    for number, choice in enumerate(choices):
        mask = (choice.layout.candidates if which == "candidates" else choice.__dict__[which]).cpu()
        slots = [own[there] for own, there in zip(choice.layout.slot.cpu(), mask, strict=True)]
        # The cut before layer 0 chose among slots of the whole prompt; later ones count those of the shortened.
        if origin is not None and number:
            slots = [whole[own] for whole, own in zip(origin.cpu(), slots, strict=True)]
        # Fed in another order than their patches'; but groups name candidates by place.
        done.append(tuple(own if which == "candidates" else own.sort().values for own in slots))
    return tuple(done)


def _groups(choices: list[Choice]) -> Stages:
    """The group of each candidate: [stage][row]."""
    masks = [(choice.groups.cpu(), choice.layout.candidates.cpu()) for choice in choices]
    return tuple(tuple(groups[row][mask[row]] for row in range(len(groups))) for groups, mask in masks)
