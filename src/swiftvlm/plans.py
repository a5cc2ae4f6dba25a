"""How many visual tokens each layer sees: plain integers, decided once, obeyed by the engine and summed by everyone."""

from dataclasses import dataclass
from itertools import pairwise

from swiftvlm.amounts import Number
from swiftvlm.errors import BudgetError


@dataclass(frozen=True)
class Cut:
    """One stage's counts for one row: after `after` layers, `kept` selected tokens and `merged` merged ones go on."""

    after: int
    kept: int
    merged: int = 0
    reevaluates: bool = False  # bypassed tokens were restored and scored again here (paper eq. 19 is paid)

    @property
    def total(self) -> int:
        """Visual tokens in the sequence behind this stage; merged tokens count."""
        return self.kept + self.merged


@dataclass(frozen=True)
class Plan:
    """The visual tokens of one row at every layer.

    `visual`: tokens before the first cut; `text`: all other tokens of the row; `cuts` in order of depth. A row without
    cuts is untouched. Built by `swiftvlm.plan`, by the engine for every row, or by hand.
    """

    layers: int
    visual: int
    # Not always whole: 69.5 text tokens reproduce the FLOPs of the paper's Table 1.
    text: Number
    cuts: tuple[Cut, ...] = ()

    def __post_init__(self) -> None:
        # The engine trusts a plan blindly, so nonsense must not get past this point.
        depths = [0, *(cut.after for cut in self.cuts), self.layers]
        if any(a >= b for a, b in pairwise(depths[1:])) or depths[1] < 0:
            raise BudgetError(f"cuts must act at increasing depths below {self.layers} layers, got {depths[1:-1]}")
        for cut in self.cuts:
            if cut.merged < 0 or cut.kept + cut.merged > self.visual or cut.kept < min(1, self.visual):
                raise BudgetError(
                    f"the stage after layer {cut.after} keeps {cut.kept} + {cut.merged} merged of {self.visual} "
                    "visual tokens: keep at least 1, and no more than there are"
                )

    @property
    def tokens_per_layer(self) -> tuple[int, ...]:
        """Visual tokens at the *input* of each layer, merged tokens included; length `layers`."""
        counts = [self.visual] * self.layers
        for cut in self.cuts:
            # From 0, index `after` is the first layer that sees what a cut behind `after` layers left.
            counts[cut.after :] = [cut.total] * (self.layers - cut.after)
        return tuple(counts)

    @property
    def average_tokens(self) -> float:
        """Mean of `tokens_per_layer`: what a budget of "192 tokens" means."""
        return sum(self.tokens_per_layer) / self.layers

    @property
    def average_at_output(self) -> float:
        """The average when each layer is counted by what leaves it, as SparseVLM's tables are (one layer shorter)."""
        # SparseVLM prunes a layer's output, so its tables count 2 full layers where 3 are computed (its issue 35).
        counts = self.tokens_per_layer
        return sum(counts[1:] + counts[-1:]) / self.layers

    @property
    def all_tokens_per_layer(self) -> tuple[Number, ...]:
        """Text and visual tokens at the input of each layer."""
        return tuple(self.text + visual for visual in self.tokens_per_layer)
