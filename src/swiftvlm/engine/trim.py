"""Once a prompt is through: the caches of layers before a cut, cut to the same tokens (IVC-Prune)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from swiftvlm.engine.before import Before
from swiftvlm.engine.prefill import Prefill


def trimmable(prefill: Prefill) -> bool:
    """Whether there are caches to cut: a stage that says so, and that left something out."""
    due = any(stage.trims for _, stage in prefill.stages.values())
    # By counts, not by lengths: beside a longer row of text a batch stays as long as it was.
    return due and any(cut.total < plan.visual for plan in prefill.plans for cut in plan.cuts)


def trim(prefill: Prefill, cache: Any) -> None:
    """Cut every layer's keys and values in `cache` to the tokens that are left behind the only stage."""
    (segment,) = prefill.segments
    # Layers from the cut on have cached these tokens and no others.
    for layer in cache.layers[: segment.start]:
        layer.keys, layer.values = _columns(layer.keys, segment.slot), _columns(layer.values, segment.slot)
    # The record is made next: its first span, as long as the whole prompt, must have no layers left.
    prefill.segments = [replace(segment, start=0)]


def settle(prefill: Prefill) -> None:
    """From here on the prompt is the shorter one in all layers, as behind a cut before layer 0."""
    (segment,) = prefill.segments
    shift = segment.shift if segment.shift is not None else segment.slot.new_zeros(len(segment.slot)).float()
    none = torch.full_like(segment.slot, -1)
    cells = tuple(prefill.cells)
    prefill.before = Before(segment.slot, segment.slot, shift, segment.prompt, prefill.choices[-1], cells, none)
    prefill.segments = []


def _columns(cached: Tensor, slot: Tensor) -> Tensor:
    """The tokens at `slot` (batch, kept) of (batch, heads, tokens, dim); fillers get the first, and are hidden."""
    index = slot.clamp(min=0).to(cached.device)[:, None, :, None]
    return cached.gather(2, index.expand(-1, cached.shape[1], -1, cached.shape[3]))
