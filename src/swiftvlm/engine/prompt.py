"""`Prompt`: one batch of prompts as it enters the language model, and the plan of every row."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swiftvlm.engine.layout import Layout, whole
from swiftvlm.errors import UnsupportedError

# Rows are copies of one prompt if all their tokens' embeddings agree to this share of the token's largest value: a
# rounding or two of half precision, which two frames of a film do not stay below in float32.
SAME, SAME_IN_FLOAT32 = 1e-2, 1e-5


@dataclass(frozen=True)
class Prompt:
    """A batch as given: ids, what is attended, where the visual tokens are, and how many of each every row has.

    `pictured`: all visual tokens; `candidates`: those that are attended and not the last token of their row.
    `twin[row]`: the first row that holds the same prompt. Beam search and `num_return_sequences` repeat prompts and
    later shuffle the copies' caches among each other, so copies must share one choice although their scores may
    differ by a rounding error.
    """

    input_ids: Int[Tensor, "batch prompt"]
    attended: Bool[Tensor, "batch prompt"]
    pictured: Bool[Tensor, "batch prompt"]
    candidates: Bool[Tensor, "batch prompt"]
    visual: tuple[int, ...]
    text: tuple[int, ...]
    twin: Int[Tensor, " batch"] | None

    @classmethod
    def read(
        cls,
        input_ids: Int[Tensor, "batch prompt"],
        mask: Tensor | None,
        visual: Bool[Tensor, "batch prompt"],
        embeds: Float[Tensor, "batch prompt dim"],
    ) -> "Prompt":
        """Count a batch, in one wait for the device. The last attended token of a row counts as text.

        Raises `UnsupportedError` for a custom 4-D mask and for a row that attends to nothing.
        """
        if mask is not None and mask.shape != input_ids.shape:
            raise UnsupportedError(
                f"pruning reads padding from a 2-D attention mask of the prompt's shape {tuple(input_ids.shape)}, got "
                f"{tuple(mask.shape)}; pass the processor's attention_mask"
            )
        # One transfer for all counts: everything behind this is planned in Python integers.
        attended = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool().to(input_ids.device)
        last = (attended * torch.arange(1, input_ids.shape[1] + 1, device=attended.device)).argmax(dim=1)
        candidates = (visual & attended).scatter(1, last[:, None], False)
        counts = torch.stack([candidates.sum(1), attended.sum(1)]).tolist()
        if 0 in counts[1]:
            raise UnsupportedError(f"row {counts[1].index(0)} of the batch attends to no token at all")
        text = tuple(real - seen for seen, real in zip(*counts, strict=True))
        twin = _twins(input_ids, attended, embeds)
        return cls(input_ids, attended, visual, candidates, tuple(counts[0]), text, twin)

    def layout(self, position: Int[Tensor, "_ prompt"] | None) -> Layout:
        """The batch before any stage; positions as the model was given them, else counted from 0."""
        length = self.input_ids.shape[1]
        if position is None:
            position = torch.arange(length, device=self.input_ids.device)[None]
        padding = tuple(length - seen - text for seen, text in zip(self.visual, self.text, strict=True))
        return whole(self.attended, self.candidates, position, padding)


def _twins(input_ids: Tensor, attended: Tensor, embeds: Tensor) -> Int[Tensor, " batch"] | None:
    """The first row of each run of equal neighbours; None where all rows differ."""
    if input_ids.shape[0] == 1:
        return None
    # On beams' copies the tower may round differently, so ids must be equal but features only nearly so.
    # Neighbours are enough: generate repeats each row in place, so that its copies stand together.
    same = ((input_ids[1:] == input_ids[:-1]) & (attended[1:] == attended[:-1])).all(1)
    if not bool(same.any()):
        return None
    gap, size = (embeds[1:] - embeds[:-1]).abs().amax(2), embeds[1:].abs().amax(2)
    # Token by token: beside one large token, a whole picture's change would be small.
    same &= (gap <= (SAME_IN_FLOAT32 if embeds.dtype == torch.float32 else SAME) * size).all(1)
    first = torch.arange(input_ids.shape[0], device=same.device)
    # Copies become 0, and the running maximum gives them the number of the row that their run began with.
    first[1:] = first[1:].masked_fill(same, 0)
    return first.cummax(0).values
