"""One prefill under a method: at each stage restore, score, select, and cut the token axis. Nothing else cuts it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from swiftvlm import tokens
from swiftvlm.engine.cache import cached_keys
from swiftvlm.engine.layout import Beside, Choice, Layout, Next, cut, shrink
from swiftvlm.engine.probe import Probe
from swiftvlm.engine.prompt import Prompt
from swiftvlm.engine.segment import Segment
from swiftvlm.errors import UnsupportedError
from swiftvlm.families import Family
from swiftvlm.plans import Plan
from swiftvlm.scores import Started, View
from swiftvlm.stage import Bypass, Merge, Stage

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Aside(Beside):
    """What a bypass keeps beside the layers: every state at the stage, and how the tokens that went on stand for it."""

    hidden: Float[Tensor, "batch tokens dim"]
    choice: Choice
    step: Next

    def restore(self, hidden: Float[Tensor, "batch kept dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Bring bypassed tokens up to date by their group's offset (eqs. 12-13); tokens that went on are exact."""
        choice, where = self.choice, self.step.where
        # The merged token's own change is all we know of what the skipped layers would have done to its members.
        place, _ = tokens.places(choice.anchors, choice.means.shape[1])
        # Rows with fewer groups than others read place 0 for the rest: offsets that no member takes.
        offset = tokens.rows(hidden, where.gather(1, place)).float() - choice.means
        aligned = (self.hidden.float() + tokens.unmerge(offset, choice.groups)).to(hidden.dtype)
        # An anchor's slot held the mean, not the anchor: it is restored like every other member.
        exact = (where >= 0) & ~choice.anchors
        return torch.where(exact[..., None], tokens.rows(hidden, where), aligned)


class Prefill:
    """The state of one prefill, fed layer by layer; `choices`, `segments` and `plans` are its outcome."""

    def __init__(
        self,
        family: Family,
        decoder: PreTrainedModel,
        stages: tuple[Stage, ...],
        prompt: Prompt,
        plans: tuple[Plan, ...],
        position: Tensor | None = None,
        cells: Sequence[Tensor | None] = (),
        before: Any = None,
    ) -> None:
        """`before`: the cut before layer 0 (`swiftvlm.engine.before`) that made `prompt`, if there was one."""
        self.family, self.decoder, self.prompt, self.plans, self.cells = family, decoder, prompt, plans, cells
        self.before = before
        self.layers = family.layers(decoder)
        # Whether something has been generated behind the prompt.
        self.decoded = False
        # Numbers count the plan's cuts, the one before layer 0 among them.
        first = 0 if before is None else 1
        # `after` layers have run: from 0, the number of the layer in front of which a stage acts.
        self.stages = {stage.after: (i, stage) for i, stage in enumerate(stages, first)}
        self.choices: list[Choice] = [] if before is None else [before.choice]
        self.segments: list[Segment] = []
        self.start = self.layout = prompt.layout(position)
        self.aside: Aside | None = None
        self.probed: Probe | None = None
        self.embedded: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt as given, padding included."""
        return self.prompt.input_ids.shape[1]

    @property
    def held(self) -> int:
        """Tokens of the prompt that layer 0's cache holds."""
        return self.length if self.before is None else int(self.before.slot.shape[1])

    def segment(self, index: int) -> Segment | None:
        """The segment that layer `index` belongs to; None before the first cut."""
        return next((segment for segment in reversed(self.segments) if segment.start <= index), None)

    def forget(self) -> None:
        """Let go of every hidden state; what decoding and the trace need stays."""
        self.aside = self.probed = self.embedded = None

    def spans(self, length: int) -> list[tuple[int, int]]:
        """(cached tokens of a row, fillers included; number of layers) from the first layer to the last."""
        starts = [0, *(segment.start for segment in self.segments), len(self.layers)]
        sizes = [length, *(segment.slot.shape[1] for segment in self.segments)]
        return [(size, b - a) for size, (a, b) in zip(sizes, pairwise(starts), strict=True)]

    def rotate(
        self, hidden: Float[Tensor, "batch tokens dim"], positions: Float[Tensor, "batch tokens"]
    ) -> tuple[Tensor, Tensor]:
        """cos and sin at any positions, from the model's own rotary module, where `hidden` is."""
        cos, sin = self.family.rotary(self.decoder, hidden, positions)
        return cos.to(hidden.device), sin.to(hidden.device)

    def remember(self, index: int, hidden: Float[Tensor, "batch tokens dim"], inputs: Inputs) -> None:
        """Keep what layer `index` is about to see, if the stage behind it scores with that layer's own map."""
        following = self.stages.get(index + 1)
        if following is not None and following[1].score.probe == "previous":
            self.probed = Probe(self.layers[index], hidden, inputs["position_embeddings"])

    def stage(
        self, index: int, hidden: Float[Tensor, "batch tokens dim"], inputs: Inputs, flat: bool
    ) -> Float[Tensor, "batch kept dim"]:
        """Apply the stage due before layer `index` (if one is) to the states; `flat`: masks have two dimensions."""
        if index == 0:
            self.embedded = hidden
        if index not in self.stages:
            return hidden
        number, stage = self.stages[index]
        hidden, layout = self._restored(hidden)
        view = self._view(number, stage, index, hidden, layout, inputs)
        scores = stage.score.rate(view)
        # Copies of one prompt (beams) must choose alike: their caches will be shuffled among each other.
        scores = scores if self.prompt.twin is None else scores[self.prompt.twin.to(scores.device)]
        if stage.measure is not None:
            self._measure(number, list(stage.measure(view, scores)), layout.candidates.sum(1).tolist())
        choice = self._choose(number, stage, hidden, layout, scores)
        hidden = self._apply(number, stage, choice, hidden, flat)
        # The trace needs indexes only; states would hold on to the whole prompt.
        self.choices.append(replace(choice, means=choice.means[:, :0]))
        return hidden

    def _restored(self, hidden: Tensor) -> tuple[Tensor, Layout]:
        if self.aside is not None:
            aside = self.aside.to(hidden.device)
            return aside.restore(hidden), aside.choice.layout
        return hidden, self.layout.to(hidden.device)

    def _counts(self, number: int, field: str) -> tuple[int, ...]:
        """Every row's kept or merged count at a stage; a row without cuts keeps all it has."""
        whole = {"kept": self.prompt.visual, "merged": (0,) * len(self.plans)}[field]
        cuts = zip(self.plans, whole, strict=True)
        return tuple(plan.cuts[number].__dict__[field] if plan.cuts else all_ for plan, all_ in cuts)

    def _measure(self, number: int, found: list[tuple[int, int]], left: list[int]) -> None:
        """Replace planned counts by measured ones, within the plan's bound and what an earlier stage has `left`."""
        changed = []
        for plan, (count, merged), there in zip(self.plans, found, left, strict=True):
            cuts = list(plan.cuts)
            if cuts:
                kept = max(min(count, cuts[number].kept, there), 1)
                cuts[number] = replace(cuts[number], kept=kept, merged=min(merged, there - kept))
            changed.append(replace(plan, cuts=tuple(cuts)))
        self.plans = tuple(changed)

    def _view(self, number: int, stage: Stage, index: int, hidden: Tensor, layout: Layout, inputs: Inputs) -> View:
        def probe() -> Probe:
            if stage.score.probe == "previous" and self.probed is not None:
                cached = cached_keys(inputs.get("past_key_values"), index - 1, self.probed.hidden)
                return replace(self.probed, keys=cached)
            return Probe(self.layers[index], hidden, self._rotary(hidden, layout, inputs))

        ids = self.prompt.input_ids.to(hidden.device)
        keep = self._counts(number, "kept")
        here = layout.slot, layout.present, layout.candidates, layout.query
        return View(
            hidden,
            *here,
            keep,
            ids,
            attention_logits=lambda queries, rope: probe().logits(self.family, queries, rope).to(hidden.device),
            keys=lambda: self._own_keys(probe(), layout).to(hidden.device),
            values=lambda: probe().values(self.family).to(hidden.device),
            entered=lambda: probe().hidden.to(hidden.device),
            final=lambda: self.family.final_norm(self.decoder)(hidden).to(hidden.device),
            cells=lambda: self._cells(layout),
            start=self._started,
            turned=lambda: self.rotate(hidden[..., :1].float(), self._own_positions(layout)),
            labels=lambda: self._labels(layout),
        )

    def _started(self) -> Started:
        """What layer 0 was given."""
        if self.embedded is None:
            raise RuntimeError("a stage asks for the prompt's embeddings, but layer 0 has not run")
        return Started(self.embedded, self.start.present, self.start.candidates, self.start.query)

    def _cells(self, layout: Layout) -> Int[Tensor, "batch tokens 4"]:
        """Image, tile, row and column of every token. Raises `UnsupportedError` where the family cannot say."""
        whole = torch.full((*self.prompt.pictured.shape, 4), -1)
        for row, (cells, pictured) in enumerate(zip(self.cells, self.prompt.pictured.cpu(), strict=True)):
            if cells is None:
                raise UnsupportedError(
                    f"{self.family.name} models do not say where in the image a token stands, and this method asks; "
                    "choose a method that does not, such as 'fastv' or 'swiftvlm'"
                )
            whole[row, pictured] = cells.cpu()
        found = tokens.rows(whole.to(layout.slot.device), layout.slot)
        return found.masked_fill((layout.slot < 0)[..., None], -1)

    def _labels(self, layout: Layout) -> Int[Tensor, "batch tokens"]:
        """Clusters found before layer 0."""
        if self.before is None:
            raise RuntimeError("a stage asks for clusters, but nothing was cut before the language model")
        found = tokens.rows(self.before.labels.to(layout.slot.device), layout.slot)
        return found.masked_fill((layout.slot < 0) | ~layout.candidates, -1)

    def _rotary(self, hidden: Tensor, layout: Layout, inputs: Inputs) -> tuple[Tensor, Tensor]:
        if layout.moved:
            return self.rotate(hidden, layout.position)
        cos, sin = (part.to(hidden.device) for part in inputs["position_embeddings"])
        return tokens.rows(cos, layout.slot), tokens.rows(sin, layout.slot)

    def _own_keys(self, probe: Probe, layout: Layout) -> Tensor:
        """Keys turned by positions that count each row's own tokens from 0: their entries are those of the row alone,

        which those of a row behind padding are not (its attention only sees distances).
        """
        rotary = self.rotate(probe.hidden, self._own_positions(layout).to(probe.hidden.device))
        return replace(probe, keys=None, rotary=rotary).projected(self.family, rope=True)

    def _own_positions(self, layout: Layout) -> Float[Tensor, "batch tokens"]:
        """Counted from 0 at each row's own first token, whatever padding stands before it."""
        return layout.position - layout.position.masked_fill(~layout.present, torch.inf).amin(1, keepdim=True)

    def _choose(self, number: int, stage: Stage, hidden: Tensor, layout: Layout, scores: Tensor) -> Choice:
        keep = torch.tensor(self._counts(number, "kept"), device=hidden.device)
        merge = self._counts(number, "merged")
        kept = tokens.keep_top(scores, layout.candidates, keep)
        low = layout.candidates & ~kept
        anchors, groups = torch.zeros_like(low), torch.full_like(layout.slot, -1)
        if isinstance(stage.rest, Merge) and any(merge):
            beside = {"grid": self._cells, "labels": self._labels}.get(stage.rest.anchors)
            anchors, groups = _grouped(stage.rest, hidden, low, scores, beside and beside(layout), merge)
        return Choice(layout, kept, anchors, groups, tokens.means(hidden, groups, max(merge)))

    def _apply(self, number: int, stage: Stage, choice: Choice, hidden: Tensor, flat: bool) -> Tensor:
        """Open the next segment, set bypassed tokens aside, put merged states into their anchors' slots, and cut."""
        # Counts come from the plan, in Python: the new length is known without asking the device.
        layout = self._turned(stage, choice)
        counts = zip(self.prompt.text, self._counts(number, "kept"), self._counts(number, "merged"), strict=True)
        real = tuple(text + kept + merged for text, kept, merged in counts)
        survivors = layout.present & (~layout.candidates | choice.kept | choice.anchors)
        moved = isinstance(stage.rest, Merge) and stage.rest.place == "behind"
        step = shrink(layout, survivors, max(real), choice.anchors if moved else None)
        self.layout = cut(layout, step, real, stage.positions)
        self.segments.append(Segment.of(stage.after, self.start, self.layout, flat))
        self.aside = Aside(hidden, choice, step) if isinstance(stage.rest, Bypass) else None
        # Behind `Aside`, which must keep the members as they were.
        if choice.means.shape[1]:
            merged = tokens.unmerge(choice.means, choice.groups).to(hidden.dtype)
            merged = merged + hidden if isinstance(stage.rest, Merge) and stage.rest.added else merged
            hidden = torch.where(choice.anchors[..., None], merged, hidden)
        return tokens.rows(hidden, step.source)

    def _turned(self, stage: Stage, choice: Choice) -> Layout:
        """The layout with each anchor at the mean position of its group, where the stage says so."""
        layout = choice.layout
        if not isinstance(stage.rest, Merge) or stage.rest.position == "anchor" or not choice.means.shape[1]:
            return layout
        # Only for the tokens that go on: `Aside` keeps `choice`, where each has its own position to come back to.
        mean = tokens.means(layout.position[..., None], choice.groups, choice.means.shape[1])
        moved = torch.where(choice.anchors, tokens.unmerge(mean, choice.groups)[..., 0], layout.position)
        return replace(layout, position=moved, moved=True)


def _grouped(
    rest: Merge, hidden: Tensor, low: Tensor, scores: Tensor, beside: Tensor | None, merge: tuple[int, ...]
) -> tuple[Bool[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """Anchors among the unselected tokens, `merge` a row, and the group of each token; `beside`: cells or labels."""
    count = torch.tensor(merge, device=hidden.device)
    if rest.recycled < 1.0:
        # SparseVLM's int(0.3 * D) + 1, in double so that it is cut off as in Python.
        low = tokens.keep_top(scores, low, (rest.recycled * low.sum(1).double()).long() + 1)
    if rest.anchors == "peaks":
        return tokens.peaks(hidden, low, count)
    if rest.anchors == "labels" and beside is not None:
        return tokens.labelled(low, beside, count)
    if beside is not None:
        anchors = tokens.covering(low, beside, count)
    elif rest.anchors == "strided":
        anchors = tokens.strided(low, count)
    else:
        anchors = tokens.keep_top(scores, low, count)
    return anchors, tokens.group(hidden, low, anchors, max(merge), rest.refine)
