"""Muon in single precision: torch's own works in bfloat16, which CPUs without it multiply fifty times slower."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Steep at 0, so that five steps do; the price is that singular values end near 1 and not at it.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that pushes singular values towards 1


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix whose singular values are about 1 (rows, columns), by Newton-Schulz steps."""
    # Tall matrices are turned, so that the product below is the smaller of the two.
    turned = matrix.shape[0] > matrix.shape[1]
    # The Frobenius norm bounds the largest singular value: all begin below 1, where the quintic is made for.
    found: Tensor = (matrix.T if turned else matrix) / (matrix.norm() + 1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(steps):
        square = found @ found.T
        found = first * found + (third * square + fifth * square @ square) @ found
    return found.T if turned else found


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal (Jordan et al. 2024), scaled to the size of AdamW's steps."""

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every matrix that has a gradient; `closure` is not called."""
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                kept = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                kept.lerp_(weight.grad, 1 - group["momentum"])
                # Nesterov's momentum, as in Jordan's code.
                ahead = weight.grad.lerp(kept, group["momentum"])
                # Entries of an orthogonal matrix are 1 / sqrt(longer side) in the root mean square; AdamW's are 0.2.
                scale = 0.2 * max(weight.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(ahead), alpha=-group["lr"] * scale)
