"""DART's choice: unlike a few pivots."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from swiftvlm.scores import View, behind, marked


@dataclass(frozen=True)
class Dissimilar:
    """What is least like a few pivots, the tokens of the largest keys (DART). Attention is not looked at.

    `pivots`: as many visual and as many text tokens behind the image. Each pivot in turn adds its share of the visual
    tokens still left, those of the lowest cosine to it; their turns come in the order in which the official code's
    Python set of their positions yields them.
    """

    pivots: int
    probe: Literal["previous", "next"] = "previous"

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """1 for chosen tokens, 0 for all others."""
        # (batch, tokens). RoPE changes an L1 norm, unlike a length: hence keys at positions counted from each row's own
        # first token, which padding does not shift.
        sizes = view.keys().float().abs().sum((1, 3))
        units = torch.nn.functional.normalize(view.final().float(), dim=-1)

        def choose(row: int, visual: Tensor, keep: int) -> list[int]:
            text = behind(view.present[row], visual, view.query[row])
            # Counted from the row's own first token: padding must not change whose turn it is.
            position = view.present[row].cumsum(0) - 1
            return self._chosen(sizes[row], units[row], position, visual, text, keep)

        return marked(view, choose)

    def _chosen(
        self, sizes: Tensor, units: Tensor, position: Tensor, visual: Tensor, text: Tensor, keep: int
    ) -> list[int]:
        """Places of `keep` visual tokens."""
        kept = _first(-sizes, visual, min(self.pivots, keep))
        # Text pivots only point at visual tokens: text stays anyway, and does not count.
        pivots = _as_a_set(kept + _first(-sizes, text, self.pivots), position)
        share, more = divmod(keep - len(kept), len(pivots))
        for number, pivot in enumerate(pivots):
            left = visual[~torch.isin(visual, torch.tensor(kept, device=visual.device))]
            kept = kept + _first(units @ units[pivot], left, share + (number < more))
        return kept


def _as_a_set(pivots: list[int], position: Tensor) -> list[int]:
    """These places in the order of a set of their positions: by the last bits of the number, in CPython."""
    numbers: list[int] = position[pivots].tolist()
    at = dict(zip(numbers, pivots, strict=True))
    # From a list, and copied, as the official code does: a set made of a dict, or the first set, may differ in order.
    return [at[number] for number in set(numbers).copy()]


def _first(values: Tensor, among: Tensor, count: int) -> list[int]:
    """The `count` places of the lowest values, ascending in value; ties: the lower place."""
    best: list[int] = among[torch.argsort(values[among], stable=True)[:count]].tolist()
    return best
