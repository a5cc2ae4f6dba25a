"""`Segment`: the layers between two stages, and the slices of the model's own tensors that they receive."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swiftvlm import tokens
from swiftvlm.engine.layout import Beside, Layout
from swiftvlm.errors import UnsupportedError

Rotate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (hidden, positions) -> (cos, sin)


@dataclass(frozen=True)
class Segment(Beside):
    """Layers from `start` on (0-based) run on `slot`s of the prompt.

    `present` and `holed` as in `Layout`; `position` only where positions moved; `shift`: what to subtract from the
    position of tokens that come after the prompt, (batch,), where positions moved; `prompt`: the prompt's length;
    `flat`: the backend (FlashAttention) takes masks of two dimensions.
    """

    start: int
    prompt: int
    slot: Int[Tensor, "batch tokens"]
    present: Bool[Tensor, "batch tokens"]
    holed: bool
    flat: bool
    position: Float[Tensor, "batch tokens"] | None = None
    shift: Float[Tensor, " batch"] | None = None

    @classmethod
    def of(cls, start: int, prompt: Layout, layout: Layout, flat: bool) -> "Segment":
        """The segment that a stage's layout opens; `prompt` is the layout before any stage."""
        shift = None
        # Whichever stage moved them: one that leaves positions alone leaves them where an earlier one put them.
        if layout.moved:
            # The model counts on from the last prompt token's own position, this layer from its new one.
            old = prompt.position.gather(1, prompt.query[:, None])[:, 0]
            shift = old.to(layout.slot.device) - layout.position.gather(1, layout.query[:, None])[:, 0]
        position = layout.position if layout.moved else None
        length = prompt.slot.shape[1]
        return cls(start, length, layout.slot, layout.present, layout.holed, flat, position, shift)

    def prefill(
        self, hidden: Float[Tensor, "batch tokens dim"], inputs: dict[str, Any], rotate: Rotate
    ) -> dict[str, Any]:
        """Keyword arguments of a layer during the prefill: the model's own, sliced to this segment's tokens."""
        # Slices of what the model itself computed, unless positions moved: then the model's own rotary module again.
        if self.position is None:
            cos, sin = inputs["position_embeddings"]
            rotary = tokens.rows(cos.to(hidden.device), self.slot), tokens.rows(sin.to(hidden.device), self.slot)
        else:
            rotary = rotate(hidden, self.position)
        mask = _prefill_mask(inputs.get("attention_mask"), self, hidden)
        # Gapped position ids would switch FlashAttention to packed sequences; RoPE travels in the embeddings.
        return {"position_embeddings": rotary, "attention_mask": mask, "position_ids": None}

    def step(
        self, hidden: Float[Tensor, "batch new dim"], inputs: dict[str, Any], keys: int, rotate: Rotate
    ) -> dict[str, Any]:
        """Keyword arguments of a layer for tokens after the prompt; `keys`: mask columns of an uncut layer."""
        changed: dict[str, Any] = {
            "attention_mask": _step_mask(inputs.get("attention_mask"), self, hidden, keys),
            "position_ids": None,
        }
        if self.shift is not None:
            positions = (
                inputs["position_ids"].to(hidden.device).expand(hidden.shape[0], -1).float() - self.shift[:, None]
            )
            changed["position_embeddings"] = rotate(hidden, positions)
        return changed


def _columns(mask: Tensor, index: Tensor) -> Tensor:
    """Gather the key columns of a (batch, 1, queries, keys) or (batch, keys) mask; negative columns are hidden."""
    mask = mask.expand(index.shape[0], *mask.shape[1:])
    shaped = index.clamp(min=0).view(index.shape[0], *[1] * (mask.dim() - 2), index.shape[1])
    gathered = mask.gather(-1, shaped.expand(*mask.shape[:-1], -1))
    # Boolean and 2-D masks say False; additive ones the least finite number, as transformers does.
    hidden = 0 if mask.dim() == 2 or mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return gathered.masked_fill((index < 0).view(shaped.shape), hidden)


def _prefill_mask(mask: Any, segment: Segment, hidden: Tensor) -> Tensor | None:
    """The mask of queries x keys among the segment's tokens, in the kind the attention backend was given."""
    if mask is None:
        if not segment.holed:
            # Equal rows, nothing hidden: "is_causal" still says it all, and the fast kernels stay on.
            return None
        if segment.flat:
            return segment.present
        # Slots ascend, so their order is the order of the sequence; a filler's -1 comes before all.
        causal = segment.slot[:, None, :, None] >= segment.slot[:, None, None, :]
        return causal & segment.present[:, None, None, :]
    mask = _checked(mask, hidden)
    if mask.dim() == 4:
        # (batch or 1, 1, prompt, prompt): queries here, keys in `_columns`. Fillers ask as slot 0 does, unattended.
        index = segment.slot.clamp(min=0)[:, None, :, None]
        mask = mask.expand(index.shape[0], *mask.shape[1:])
        mask = mask.gather(2, index.expand(-1, mask.shape[1], -1, mask.shape[3]))
    return _columns(mask, segment.slot)


def _step_mask(mask: Any, segment: Segment, hidden: Tensor, keys: int) -> Tensor | None:
    """The same for tokens after the prompt: the segment's slots, then everything that came since."""
    # The model sized its mask by layer 0, which saw the whole prompt; this layer cached some of its columns.
    since = torch.arange(segment.prompt, keys, device=hidden.device).expand(hidden.shape[0], -1)
    index = torch.cat([segment.slot, since], dim=1)
    if mask is not None:
        return _columns(_checked(mask, hidden), index)
    if not segment.holed:
        return None
    if segment.flat:
        return index >= 0
    if hidden.shape[1] > 1:
        raise UnsupportedError(
            f"{hidden.shape[1]} tokens at once behind a batch of unequal rows need an attention mask: pass the "
            "attention_mask of the whole conversation"
        )
    return (index >= 0)[:, None, None, :]


def _checked(mask: Any, hidden: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise UnsupportedError(
            f"an attention mask of type {type(mask).__name__} cannot be sliced per layer; load the model with "
            "attn_implementation='sdpa', 'eager' or 'flash_attention_2'"
        )
    return mask.to(hidden.device)
