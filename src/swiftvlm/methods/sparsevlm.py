"""SparseVLM: the text tokens that the image is about rate it, and the best of what they drop is merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from swiftvlm.budget import Slot, refuse
from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset, at_depth
from swiftvlm.plans import Cut, Plan
from swiftvlm.ratings.raters import Corrected, RankOfAttention, Raters, recycled
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Drop, Measure, Merge, Positions, Stage

AFTER = (3, 7, 16)  # the outputs of layers[2], [6] and [15]
FIRST_AFTER = (3, 7, 16, 20)  # of the first release
Version = Literal["1.5", "plus", "first"]
# The official tables, also where the first cut of "96" keeps more than that of "128".
PLUS_PRESETS: Mapping[str, Preset] = {
    "192": Preset(AFTER, ((300, 0), (200, 0), (118, 0))),
    "128": Preset(AFTER, ((238, 0), (108, 0), (60, 0))),
    "96": Preset(AFTER, ((246, 0), (54, 0), (28, 0))),
    "64": Preset(AFTER, ((66, 0), (34, 0), (20, 0))),
}
# No bound but what is there: the image decides.
FIRST_PRESETS: Mapping[str, Preset] = {"adaptive": Preset(FIRST_AFTER, ((576, 0),) * 4)}


@dataclass(frozen=True)
class SparseVLM(Method):
    """SparseVLM (Zhang et al., ICML 2025, arXiv:2410.04417): text raters score, dropped tokens are recycled.

    Follows the official v1.5: behind each of three layers the score is that layer's own attention map, mean over heads
    and over the text raters' rows. The best `int(0.3 D) + 1` of the D dropped tokens are clustered by density peaks
    on the layer's output, into `int(n / 10) + 1` plain means, placed behind the kept visual tokens; positions are
    numbered afresh. Its random addend in the clustering is left out.

    - `after`: layers run before each cut; None: 3, 7, 16 of 32 as fractions of the depth.
    - `counts`: tokens kept at each cut, before recycling. A budget counts the merged tokens, too.
    - `version`: "1.5"; "plus" (v2: no recycling, original positions, attention divided by what RoPE alone would give,
      14 of 32 heads as a share of the model's); "first" (the first release: four cuts, each of `scale` x the rank of
      the raters' attention + `bias` tokens, and recycling as in v1.5; planned counts are bounds, and without any, as
      officially, there are none: preset "adaptive").

    The official tables count a layer by its *output*, so that a published "192" computes 206.5 tokens a layer: preset
    "192" is that table, `budget=192` keeps the promise of 192.
    """

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = "rated by the text it is about; dropped tokens recycled"
    paper: ClassVar[str] = "arXiv:2410.04417"
    source: ClassVar[str] = "official code, v1.5; no random addend"
    # Official are the kept counts; the merged ones follow from them (`_recycled`) and are written out because a
    # preset's average counts them.
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset(AFTER, ((300, 9), (200, 4), (110, 3))),
        "128": Preset(AFTER, ((303, 9), (110, 7), (36, 3))),
        "96": Preset(AFTER, ((238, 11), (48, 7), (26, 1))),
        "64": Preset(AFTER, ((66, 16), (30, 2), (17, 1))),
    }

    after: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None
    version: Version = "1.5"
    # The first release's for MME; its scripts for POPE have 9 and 6, those for TextVQA .8 and 0.
    scale: float = 13.5
    bias: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0:
            raise MethodError(f"scale is a number of tokens for each rank, more than 0, got {self.scale}")

    def settings(self) -> Mapping[str, Preset]:
        """Those of the version."""
        return {"1.5": self.presets, "plus": PLUS_PRESETS, "first": FIRST_PRESETS}[self.version]

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage a cut."""
        first, recycles = self.version == "first", self.version != "plus"
        depths = self.after or at_depth(FIRST_AFTER if first else AFTER, shape.layers)
        rest = Merge(anchors="peaks", place="behind", recycled=0.3) if recycles else Drop()
        measure: Measure | None = RankOfAttention(self.scale, self.bias) if first else None
        positions: Positions = "original" if self.version == "plus" else "renumbered"
        score = Corrected() if self.version == "plus" else Raters()
        return tuple(Stage(after, score, rest, positions, measure) for after in depths)

    def _stated(self, slots: Sequence[Slot], cuts: tuple[Cut, ...], visual: int) -> tuple[Cut, ...]:
        """How many are kept says how many are recycled."""
        return _recycled(slots, [cut.kept for cut in cuts], visual) if self.version != "plus" else cuts

    def _solve(self, slots: Sequence[Slot], layers: int, visual: int, average: float) -> tuple[Cut, ...]:
        if self.version != "plus":
            return _solved(slots, layers, visual, average)
        return super()._solve(slots, layers, visual, average)


@dataclass(frozen=True)
class SparseVLMPlus(SparseVLM):
    """SparseVLM+ (the official v2): `SparseVLM` with `version="plus"` and its own published counts."""

    name: ClassVar[str] = "sparsevlm+"
    summary: ClassVar[str] = "rated by the text it is about; nothing merged"
    source: ClassVar[str] = "official code, v2; 14 of 32 heads as a share"
    presets: ClassVar[Mapping[str, Preset]] = PLUS_PRESETS

    version: Version = "plus"


def _recycled(slots: Sequence[Slot], kept: Sequence[int], visual: int) -> tuple[Cut, ...]:
    """Cuts that keep so many each, with the merged tokens that the dropped ones make."""
    cuts: list[Cut] = []
    for slot, wanted in zip(slots, kept, strict=True):
        # Merged tokens are ordinary candidates of the next cut.
        available = cuts[-1].total if cuts else visual
        # Officially min(wanted, available - 1): here a count that keeps everything drops and merges nothing.
        count = min(wanted, available)
        dropped = available - count
        cuts.append(Cut(slot.after, count, recycled(dropped)))
    return tuple(cuts)


def _solved(slots: Sequence[Slot], layers: int, visual: int, average: float) -> tuple[Cut, ...]:
    """Geometric kept counts, as many as the average allows with the merged tokens that come with them."""

    # Not `budget.solve`: how many are merged follows from how many are dropped, not from a share of the total.
    def cuts(ratio: float) -> tuple[Cut, ...]:
        return _recycled(slots, [max(int(visual * ratio ** (j + 1) + 1e-6), 1) for j in range(len(slots))], visual)

    def fits(ratio: float) -> bool:
        return Plan(layers, visual, 0, cuts(ratio)).average_tokens <= average + 1e-9

    if not fits(0.0):
        refuse(slots, layers, visual, average, Plan(layers, visual, 0, cuts(0.0)).average_tokens)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    # Halving never arrives at 1 itself.
    return cuts(1.0 if fits(1.0) else low)
