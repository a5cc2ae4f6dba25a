"""`Method`: what every pruning method is. Subclasses are frozen dataclasses whose fields are the hyper-parameters."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import ClassVar

from swiftvlm.amounts import Budget, Number
from swiftvlm.budget import Slot, furthest, pick_preset, scale, solve, target_average
from swiftvlm.errors import BudgetError, MethodError
from swiftvlm.methods.fields import check_fields
from swiftvlm.plans import Cut, Plan
from swiftvlm.shape import ModelShape
from swiftvlm.stage import Bypass, Drop, Reduction, Stage


@dataclass(frozen=True)
class Preset:
    """A setting by name, published unless its method says otherwise.

    (kept, merged) at each stage, for `visual` tokens, `layers` layers and these depths.
    """

    after: tuple[int, ...]
    cuts: tuple[tuple[int, int], ...]
    # LLaVA-1.5's grid and depth, which nearly all published tables are for.
    visual: int = 576
    layers: int = 32

    def fits(self, shape: ModelShape, slots: Sequence[Slot]) -> bool:
        """Whether these stages are the published ones."""
        # Depths, too: with `after=` by hand the same counts would be another average.
        return self.layers == shape.layers and self.after == tuple(slot.after for slot in slots)

    def fraction(self) -> float:
        """The setting's layer average as a fraction of its visual tokens."""
        cuts = tuple(Cut(after, *counts) for after, counts in zip(self.after, self.cuts, strict=True))
        return Plan(self.layers, self.visual, 0, cuts).average_tokens / self.visual


class Method(ABC):
    """A pruning method: stages as data, and presets. The engine runs any of them; `plan` counts for all of them."""

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    source: ClassVar[str] = ""  # what it follows, and how closely
    presets: ClassVar[Mapping[str, Preset]] = {}
    # No fields: `Method` itself is no dataclass. A subclass annotates anew what its users may set.
    counts: tuple[int, ...] | None = None
    merged_share: float = 0.0
    taper: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        # An empty tuple is falsy: `self.after or ...` in `stages` would take it for None.
        for name in ("after", "layers"):
            if vars(self).get(name) == ():
                raise MethodError(f"{name} must name at least one layer, got ()")

    @property
    def reduction(self) -> Reduction | None:
        """What happens before the language model, if anything; the plan's first cut then acts after 0 layers."""
        return None

    def settings(self) -> Mapping[str, Preset]:
        """What a preset's name means for these fields."""
        return self.presets

    def missing(self) -> str:
        """What running needs and planning does not, and how to give it; empty where nothing is missing."""
        return ""

    @abstractmethod
    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """The method's stages for a model of this shape, in order of depth. Raises `MethodError` if they do not fit."""

    def plan(
        self, shape: ModelShape, visual: int, text: Number, budget: Budget = None, preset: str | None = None
    ) -> Plan:
        """The token counts of one row. Precedence: fixed `counts`, then `preset`, then `budget`, then the first preset.

        Raises `BudgetError` for a budget that cannot be met, or when two of them are given.
        """
        slots = slots_of(check_stages(self, self.stages(shape), shape), self.merged_share, self.reduction is not None)
        if sum(given is not None for given in (self.counts, budget, preset)) > 1:
            raise BudgetError(f"give one of counts, budget and preset, got {self.counts}, {budget!r} and {preset!r}")
        if self.counts is not None:
            self.split(self.counts, slots)
        if preset is not None:
            pick_preset(self.settings(), preset, self.name)
        if budget is not None:
            target_average(budget, visual)
        # A text-only row has nothing to cut, but a wrong budget is told for it too.
        return Plan(shape.layers, visual, text, self._cuts(slots, shape, visual, budget, preset) if visual else ())

    def _cuts(
        self, slots: Sequence[Slot], shape: ModelShape, visual: int, budget: Budget, preset: str | None
    ) -> tuple[Cut, ...]:
        if self.counts is not None:
            # The same number twice: counts by hand are not scaled to the row, only clamped to what it has.
            return self._stated(slots, scale(self.split(self.counts, slots), slots, visual, visual), visual)
        if budget is not None:
            average = target_average(budget, visual)
            return () if average is None else self._solve(slots, shape.layers, visual, average)
        known = self.settings()
        name = next(iter(known), None) if preset is None else preset
        if name is None and slots:
            raise BudgetError(f"{self.name} has no presets: give it a budget, or counts")
        if name is None:
            return ()
        table = known[name]
        if table.fits(shape, slots):
            return self._stated(slots, scale(table.cuts, slots, table.visual, visual), visual)
        # At other depths a table would mean another average, so its average is what is kept.
        return self._solve(slots, shape.layers, visual, table.fraction() * visual)

    def _stated(self, slots: Sequence[Slot], cuts: tuple[Cut, ...], visual: int) -> tuple[Cut, ...]:
        """The counts that a table or a user states; methods add here what follows from them."""
        return cuts

    def _solve(self, slots: Sequence[Slot], layers: int, visual: int, average: float) -> tuple[Cut, ...]:
        """The counts of an average; methods with a structure of their own keep to it here."""
        return solve(slots, layers, visual, average, self.taper)

    def split(self, counts: tuple[int, ...], slots: Sequence[Slot]) -> list[tuple[int, int]]:
        """Read the flat `counts` (k1, Z1, k2, Z2, ..., k_last) as (kept, merged) pairs. Raises `BudgetError`.

        Where a method merges nothing, (k1, k2, ..., k_last) says it all; where the last stage merges, Z_last ends it.
        """
        stages, ends = len(slots), bool(slots and self.merged_share and slots[-1].merges)
        # (k1, k2, k3) -> (k1, 0, k2, 0, k3): one form for the check and the pairs below.
        if not self.merged_share and len(counts) == stages:
            counts = tuple(part for kept in counts for part in (kept, 0))[:-1]
        due, last = (2 * stages, "Z") if ends else (2 * stages - 1, "k")
        if len(counts) != due or not _are_counts(counts):
            raise BudgetError(
                f"{self.name} has {stages} stages here, counts = (k1, Z1, ..., {last}{stages}) are "
                f"{due} ints: every k at least 1 and every Z at least 0; got {counts}"
            )
        return list(zip_longest(counts[::2], counts[1::2], fillvalue=0))


def _are_counts(values: Sequence[object]) -> bool:
    """Whether these are (k1, Z1, ...): ints, every k at least 1 and every Z at least 0."""
    ints = all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values)
    return ints and 0 not in values[::2]


def at_depth(layers: tuple[int, ...], depth: int, published: int = 32) -> tuple[int, ...]:
    """Published depths as the same fractions of another depth, each at least one layer behind the one before."""
    # In a very shallow model the last may lie beyond its end, which `check_stages` refuses.
    found: list[int] = []
    for layer in layers:
        found.append(max(round(layer * depth / published), 1 + (found[-1] if found else 0)))
    return tuple(found)


def proportional(
    parts: Sequence[int], slots: Sequence[Slot], layers: int, visual: int, average: float
) -> tuple[Cut, ...]:
    """Counts in fixed proportions, the most that an average allows; none merge. Raises `BudgetError` out of reach."""

    def cuts(size: int) -> tuple[Cut, ...]:
        # Behind the first cut no more can be left than it kept.
        kept = [min(max(size * part // parts[0], 1), visual) for part in parts]
        return tuple(Cut(slot.after, count) for slot, count in zip(slots, kept, strict=True))

    # Sizes beyond `visual` leave the first count as it is and let the others grow, until all keep everything.
    sizes = range(1, visual * (parts[0] // min(parts) + 1))
    return furthest(sizes, cuts, slots, layers, visual, average)


def slots_of(stages: Sequence[Stage], merged_share: float, reduces: bool = False) -> tuple[Slot, ...]:
    """What a schedule has to fill in for these stages, behind a reduction before them if there is one."""
    # One longer than `stages`, so that each meets the stage before it; the last has none to meet.
    before = (None, *stages)
    first = (Slot(0, True, merged_share),) if reduces else ()
    return first + tuple(
        Slot(
            stage.after,
            not isinstance(stage.rest, Drop),
            merged_share,
            earlier is not None and isinstance(earlier.rest, Bypass),
        )
        for earlier, stage in zip(before, stages, strict=False)
    )


def check_stages(method: Method, stages: tuple[Stage, ...], shape: ModelShape) -> tuple[Stage, ...]:
    """Check that stages go deeper and deeper inside the model, and that each can be scored. Raises `MethodError`."""
    depths = [stage.after for stage in stages]
    if any(a >= b for a, b in pairwise(depths)):
        raise MethodError(f"{method.name}: stages must act after more and more layers, got {depths}")
    # `engine.trim` gives all layers before one set of tokens; behind two cuts there would be two to choose from.
    if len(depths) + (method.reduction is not None) > 1 and any(stage.trims for stage in stages):
        raise MethodError(
            f"{method.name}: a stage that trims the caches before it must be the only cut, got stages after {depths}"
        )
    # After 0 layers is before the model, which a `reduction` does; behind the last layer nothing would run.
    if depths and not 1 <= depths[0] <= depths[-1] < shape.layers:
        raise MethodError(
            f"{method.name}: stages act after layers {depths}, but a model of {shape.layers} layers "
            f"can be cut after layers 1 to {shape.layers - 1}"
        )
    _check_bypasses(method, stages)
    return stages


def _check_bypasses(method: Method, stages: tuple[Stage, ...]) -> None:
    for earlier, stage in pairwise(stages):
        # A restored token ran through none of the layers in between: their attention maps have no column for it.
        if isinstance(earlier.rest, Bypass) and stage.score.probe == "previous":
            raise MethodError(
                f"{method.name}: the stage after layer {stage.after} cannot read the map of the layer just run, "
                "because the tokens it restores were not in it; score with probe='next'"
            )
    if stages and isinstance(stages[-1].rest, Bypass):
        raise MethodError(f"{method.name}: the last stage cannot bypass, nothing would bring its tokens back")
