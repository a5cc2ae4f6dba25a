"""IVC-Prune's foreground: tokens whose values are like those of the text, and of the image's own seeds."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swiftvlm.scores import View, behind

# The official rows begin at image_end + 2.
SKIPPED = 2  # text tokens directly behind the image


@dataclass(frozen=True)
class Foreground:
    """Softmax of value products of the layer just run, mean over heads and over the text and the seeds."""

    seeds: float
    probe: Literal["previous"] = "previous"

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """That mean, at most 1, plus 1 for seeds."""
        values = view.values().float()
        scores = torch.zeros(view.slot.shape, device=view.slot.device)
        for row in range(len(scores)):
            visual = view.candidates[row].nonzero()[:, 0]
            if len(visual):
                text = behind(view.present[row], visual, view.query[row])
                scores[row] = self._row(
                    values[row], view.present[row], visual, text[SKIPPED:] if len(text) > SKIPPED else text
                )
        return scores

    def _row(
        self, values: Float[Tensor, "heads tokens dim"], present: Tensor, visual: Int[Tensor, " m"], text: Tensor
    ) -> Float[Tensor, " tokens"]:
        first = _alike(values, present, text).sum(0)
        order = first[visual].sort(descending=True, stable=True).indices
        # At least one, as in the official code, even with a share of 0.
        seeds = visual[order[: max(1, round(self.seeds * len(visual)))]]
        both = (first + _alike(values, present, seeds).sum(0)) / (len(text) + len(seeds))
        # Below the 2 that `Coordinates` adds: coordinates come first, then seeds, then the foreground.
        both[seeds] += 1.0
        return both


def _alike(
    values: Float[Tensor, "heads tokens dim"], present: Tensor, rows: Int[Tensor, " rows"]
) -> Float[Tensor, "rows tokens"]:
    """Rows of the table; all of a row's tokens are keys, those that come later too."""
    # (heads, rows, tokens); heads are those of the keys, where query heads share them.
    logits = values[:, rows] @ values.transpose(1, 2) / values.shape[-1] ** 0.5
    return torch.softmax(logits.masked_fill(~present, -torch.inf), dim=-1).mean(0)
