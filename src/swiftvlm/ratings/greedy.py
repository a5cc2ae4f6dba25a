"""GreedyPrune's choice: by saliency, but nothing like what was taken before."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swiftvlm.scores import View, marked
from swiftvlm.tower import cosines, unit


@dataclass(frozen=True)
class Greedy:
    """The most salient tokens no two of which are more alike than `alike`, then the most salient others."""

    alike: float
    probe: None = None

    def rate(self, view: View) -> Float[Tensor, "batch tokens"]:
        """1 for chosen tokens, 0 for all others."""

        def choose(row: int, visual: Tensor, keep: int) -> Tensor:
            states = view.hidden[row, visual].float()
            salient = unit(states) @ unit(view.hidden[row, view.query[row]][None])[0]
            # Not as they are: states of a layer share so large a component that nearly all cosines pass the threshold.
            return visual[independent(salient, cosines(states - states.mean(0)), keep, self.alike)]

        return marked(view, choose)


def independent(
    salient: Float[Tensor, " m"], likeness: Float[Tensor, "m m"], count: int, alike: float
) -> Int[Tensor, " k"]:
    """Indexes of `count` tokens, in the order in which they are taken."""
    order = salient.sort(descending=True, stable=True).indices
    # On the CPU: every step asks for the outcome of the one before.
    close = (likeness[order][:, order] > alike).cpu()
    taken = torch.zeros(len(order), dtype=torch.bool)
    for place in range(len(order)):
        if int(taken.sum()) == count:
            break
        # The diagonal says that a token is like itself, but it is not taken yet.
        taken[place] = not bool((close[place] & taken).any())
    first, others = taken.nonzero()[:, 0], (~taken).nonzero()[:, 0]
    return order[torch.cat([first, others[: max(count - len(first), 0)]]).to(order.device)]
