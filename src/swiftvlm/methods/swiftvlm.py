"""SwiftVLM: cross-layer token bypass."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from swiftvlm.errors import MethodError
from swiftvlm.methods.base import Method, Preset
from swiftvlm.profiles import profile_for
from swiftvlm.scores import Coordinates, TextAttention
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Bypass, Drop, Merge, Positions, Rest, Score, Stage

PAPER_LAYERS = (3, 11, 15)  # LLaVA-1.5-7B, paper sec. 3.2
PAPER_DEPTH = 32
AFTER = (3, 10, 14)  # the same in layers already run: "after layer 3", "before layers 11 and 15"
Fate = Literal["bypass", "merge", "drop"]
Anchors = Literal["strided", "top", "grid"]
MergedPosition = Literal["anchor", "mean"]
SoftmaxOver = Literal["all", "visual"]


@dataclass(frozen=True)
class SwiftVLM(Method):
    """SwiftVLM (arXiv:2602.03134): prune at a few chosen layers; unselected tokens bypass the layers in between.

    No official code exists; what the paper leaves open is a field, or a decision stated here. Letters: docs/method.md.

    - `layers`: the paper's numbers, 1-based. The first acts *after* its layer, by that layer's own attention map; each
      later one acts *before* its layer, by that layer's norm, query and key on the restored states (A, J). None: the
      model's measured layers if it has a profile; else 3, 11, 15 on 32 layers, the same fractions of another depth.
    - `counts` (k1, Z1, k2, Z2, ..., k_last) fixes kept and merged tokens; else a budget or preset is solved with
      geometric totals (F) of which `merged_share` are merged tokens (E). Merged tokens count in the budget (C).
      `taper`: how the totals fall from stage to stage: 1 geometrically, 0 not at all (F).
    - `rest`: what becomes of the unselected at every stage but the last, which drops: "bypass" (default), "merge"
      (groups stay merged and compete as ordinary tokens, P), "drop"; a tuple gives one a stage (B; Table 3).
    - `anchors`, `refine`: how groups are formed (D). `merged_position` (K). `positions`: original ids, or renumbered.
    - Not in the paper: `anchors="grid"` spreads them over the image's rows and columns; `coordinates` is a share of the
      visual tokens that every stage keeps for their positions alone, as IVC-Prune does (arXiv:2602.03060).
    - `softmax_over`, `rope`: how the score normalises and turns (G, I); always the mean over heads after softmax (H).

    Decisions: merged tokens are never selected, their members are (L); their keys and values stay in the layers that
    computed them (M); a token bypassed twice accumulates two offsets (N).
    """

    name: ClassVar[str] = "swiftvlm"
    summary: ClassVar[str] = "a few chosen layers; the rest bypasses"
    paper: ClassVar[str] = "arXiv:2602.03134"
    source: ClassVar[str] = "the paper; no official code exists"
    # Geometric totals, under two names, are what `budget=` solves to; "flops-matched" ones come out at the FLOPs that
    # the paper prints (docs/method.md).
    presets: ClassVar[Mapping[str, Preset]] = {
        "192": Preset(AFTER, ((246, 62), (132, 33), (88, 0))),
        "128": Preset(AFTER, ((172, 43), (64, 16), (30, 0))),
        "geo-192": Preset(AFTER, ((246, 62), (132, 33), (88, 0))),
        "geo-128": Preset(AFTER, ((172, 43), (64, 16), (30, 0))),
        "flops-matched-192": Preset(AFTER, ((247, 62), (133, 33), (89, 0))),
        "flops-matched-128": Preset(AFTER, ((168, 42), (61, 15), (28, 0))),
    }

    layers: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None
    # E: the paper only says that merged tokens are well above the 5% of its coarse setting (Fig. 7).
    merged_share: float = 0.2
    taper: float = 1.0
    rest: Fate | tuple[Fate, ...] = "bypass"
    anchors: Anchors = "strided"
    refine: int = 0
    merged_position: MergedPosition = "anchor"
    positions: Positions = "original"
    softmax_over: SoftmaxOver = "all"
    rope: bool = True
    coordinates: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.merged_share < 1.0:
            raise MethodError(f"merged_share is a fraction in [0, 1) of each stage's total, got {self.merged_share}")
        if not 0.0 <= self.taper <= 4.0:
            raise MethodError(f"taper is an exponent in [0, 4], 0 for equal totals, 1 for geometric; got {self.taper}")
        if not 0.0 <= self.coordinates < 1.0:
            raise MethodError(f"coordinates is a share of the visual tokens in [0, 1), got {self.coordinates}")
        if self.refine < 0:
            raise MethodError(f"refine counts k-means steps and cannot be negative, got {self.refine}")

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """One stage a pruning layer. Raises `MethodError` where layers or fates do not fit the depth or each other."""
        # Only the first stage finds its layer's map ready: later stages score tokens that skipped the layers before.
        layers = self.layers or layers_for(shape)
        fates = self._fates(len(layers))
        return tuple(
            Stage(
                after=layer if i == 0 else layer - 1,
                score=self._score("previous" if i == 0 else "next"),
                rest=self._rest(fate),
                positions=self.positions,
            )
            for i, (layer, fate) in enumerate(zip(layers, fates, strict=True))
        )

    def _score(self, probe: Literal["previous", "next"]) -> Score:
        score = TextAttention(probe, self.softmax_over, self.rope)
        return Coordinates(score, self.coordinates) if self.coordinates else score

    def _fates(self, stages: int) -> tuple[Fate, ...]:
        given = (self.rest,) * (stages - 1) if isinstance(self.rest, str) else self.rest
        if len(given) != stages - 1:
            raise MethodError(
                f"rest is 'bypass', 'merge' or 'drop', or a tuple of {stages - 1} of them for {stages} stages (the "
                f"last always drops); got {self.rest!r}"
            )
        return (*given, "drop")

    def _rest(self, fate: Fate) -> Rest:
        if fate == "drop":
            return Drop()
        kind = Bypass if fate == "bypass" else Merge
        return kind(self.anchors, self.refine, self.merged_position)


def layers_for(shape: ModelShape) -> tuple[int, ...]:
    """The measured pruning layers of a model of this shape (`swiftvlm.profiles`), else the paper's, scaled and said."""
    known = profile_for(shape)
    if known:
        return known.layers
    chosen = scaled_layers(shape.layers)
    if shape.layers != PAPER_DEPTH:
        warnings.warn(
            f"no measured pruning layers for {shape.layers} layers: SwiftVLM uses {chosen}, the paper's {PAPER_LAYERS} "
            f"of {PAPER_DEPTH} scaled by depth. Pass layers=... to choose them.",
            stacklevel=2,
        )
    return chosen


def scaled_layers(depth: int) -> tuple[int, ...]:
    """The paper's 3, 11, 15 of 32 as the same fractions of another depth: max(3, round(i * depth / 32)).

    Very shallow models push later layers back so that at least one layer runs between two stages. Raises `MethodError`
    below 6 layers, where three stages do not fit.
    """
    if depth == PAPER_DEPTH:
        return PAPER_LAYERS
    # Not before layer 3: the paper's selection leaves layers 1 and 2 whole (sec. 3.2).
    first, second, third = (max(3, round(layer * depth / PAPER_DEPTH)) for layer in PAPER_LAYERS)
    # The first stage acts after its layer and the second before: first + 1 would leave no layer in between.
    second = max(second, first + 2)
    # The second and the third both act before their layers: one apart is enough.
    chosen = (first, second, max(third, second + 1))
    if chosen[-1] > depth:
        raise MethodError(f"a model of {depth} layers is too shallow for SwiftVLM's three stages; give layers=...")
    return chosen
