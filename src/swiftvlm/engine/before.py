"""A cut before layer 0: features are chosen or merged by what the vision tower saw, and the prompt itself shortened.

Everything behind works on the shortened prompt as if it had been given. Only decoding (whose masks and positions the
model sizes by the whole prompt) and the trace (whose indexes are those of the whole prompt) must know.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swiftvlm import tokens
from swiftvlm.budget import shares
from swiftvlm.engine.layout import Beside, Choice, Layout, cut, shrink
from swiftvlm.engine.prompt import Prompt
from swiftvlm.engine.watch import TowerWatch
from swiftvlm.errors import UnsupportedError
from swiftvlm.plans import Plan
from swiftvlm.scores import behind
from swiftvlm.stage import Reduction
from swiftvlm.tower import Reduced


@dataclass(frozen=True)
class Before(Beside):
    """What a cut before layer 0 did. `slot`: the mask column of each token that is left, -1 = filler; `origin`: the

    token of the whole prompt that it stands for; `shift`: what renumbering took off later positions; `length`: of the
    whole prompt; `cells` of its visual tokens; `labels`: each token's cluster, -1 = none.
    """

    slot: Int[Tensor, "batch kept"]
    origin: Int[Tensor, "batch kept"]
    shift: Float[Tensor, " batch"]
    length: int
    choice: Choice
    cells: tuple[Tensor | None, ...]
    labels: Int[Tensor, "batch kept"]

    def later(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the decoder for the token behind the prompt. Raises `UnsupportedError` for a prepared mask."""
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        # Layer 0 holds the shortened prompt and what came since.
        past = int(kwargs["past_key_values"].get_seq_length()) - self.slot.shape[1]
        # No mask: nothing of the whole prompt was hidden. Fillers of the shortened one still have to be.
        if mask is None:
            mask = torch.ones(len(embeds), self.length + past + embeds.shape[1], device=embeds.device).long()
        if mask.dim() != 2:
            raise UnsupportedError(f"a prompt cut before the language model needs a 2-D mask, got {tuple(mask.shape)}")
        old = mask.gather(1, self.slot.clamp(min=0)).masked_fill(self.slot < 0, 0)
        position = kwargs.get("position_ids")
        # Left to itself the model would count on from the length of layer 0's cache, which is too short.
        if position is None:
            position = torch.arange(embeds.shape[1], device=embeds.device)[None] + self.length + past
        position = position.to(embeds.device) - self.shift[:, None].to(position.dtype)
        return kwargs | {
            "attention_mask": torch.cat([old, mask[:, self.length :]], dim=1),
            "position_ids": position,
        }


@dataclass(frozen=True)
class Row:
    """One row's outcome, by slot: what comes `into` which slot, whom each stands for, and the choice for the trace."""

    into: Tensor
    content: Tensor
    stands: Tensor
    kept: Tensor
    anchors: Tensor
    groups: dict[int, int]
    labels: Tensor


def shorten(
    watch: TowerWatch,
    reduction: Reduction,
    prompt: Prompt,
    plans: Sequence[Plan],
    cells: Sequence[Tensor | None],
    embeds: Float[Tensor, "batch prompt dim"],
    position: Tensor | None,
) -> tuple[Before, Prompt, tuple[Plan, ...], list[Tensor | None], dict[str, Any]]:
    """Cut a batch: what was done, the shorter prompt with its plans and cells, and the decoder's new arguments.

    Raises:
        UnsupportedError: pictures were encoded elsewhere, or the family cannot say where a token stands.
    """
    layout = prompt.layout(position)
    rows = _rows(watch, reduction, prompt, plans, cells, embeds)
    plans = tuple(plan if row is None else _measured(plan, row) for plan, row in zip(plans, rows, strict=True))
    survivors, origin, labels, content = _placed(layout, rows, embeds)
    visual = tuple(plan.cuts[0].total if plan.cuts else plan.visual for plan in plans)
    real = tuple(text + seen for text, seen in zip(prompt.text, visual, strict=True))
    step = shrink(layout, survivors, max(real), None)
    after = cut(layout, step, real, reduction.positions)
    # Whatever comes later follows the last prompt token, so it moves by as much.
    shift = _at_query(layout) - _at_query(after)
    # Fillers (index -1) read the first token's entry here; that they are none is in `slot` alone.
    origin, length = tokens.rows(origin, step.index), layout.slot.shape[1]
    choice, labels = _choice(layout, rows, embeds), tokens.rows(labels, step.index)
    before = Before(after.slot, origin, shift, length, choice, tuple(cells), labels)
    kwargs = {
        "inputs_embeds": tokens.rows(content, step.index),
        # Even where nothing is hidden: positions with gaps would be taken for several packed prompts.
        "attention_mask": after.present.long(),
        # Whole numbers: no reduction takes means of positions.
        "position_ids": after.position.long(),
    }
    moved = [_cells_of(prompt, before, index, own) for index, own in enumerate(cells)]
    return before, _shorter(prompt, after, step.index, visual), plans, moved, kwargs


def _rows(
    watch: TowerWatch,
    reduction: Reduction,
    prompt: Prompt,
    plans: Sequence[Plan],
    cells: Sequence[Tensor | None],
    embeds: Float[Tensor, "batch prompt dim"],
) -> list[Row | None]:
    """What becomes of every row. Copies of one prompt choose alike."""
    rows: list[Row | None] = []
    for index, plan in enumerate(plans):
        first = index if prompt.twin is None else int(prompt.twin[index])
        # What beams' copies nearly always are: the very same, and looked at once.
        if first < index and torch.equal(embeds[index], embeds[first]):
            rows.append(rows[first])
            continue
        own = _row(watch, reduction, prompt, plan, cells[index], embeds, index)
        # Its own pictures even so, which a copy's only nearly are; but a rounding must not part the copies' choices.
        rows.append(own if first == index or _alike(own, rows[first]) else rows[first])
    return rows


def _alike(one: Row | None, other: Row | None) -> bool:
    """Whether the same slots hold tokens that stand for the same patches."""
    if one is None or other is None:
        return one is other
    pairs = ((one.into, other.into), (one.stands, other.stands), (one.labels, other.labels))
    return one.groups == other.groups and all(torch.equal(a, b) for a, b in pairs)


def _placed(
    layout: Layout, rows: Sequence[Row | None], embeds: Float[Tensor, "batch prompt dim"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Who stays, whom each stands for, its cluster and its embedding, each (batch, prompt, ...)."""
    survivors, origin, content = layout.present & ~layout.candidates, layout.slot.clone(), embeds.clone()
    labels = torch.full_like(origin, -1)
    for index, row in enumerate(rows):
        if row is None:
            survivors[index] |= layout.candidates[index]
        else:
            survivors[index, row.into] = True
            origin[index, row.into] = row.stands
            labels[index, row.into] = row.labels
            content[index, row.into] = row.content.to(content)
    return survivors, origin, labels, content


def _row(
    watch: TowerWatch,
    reduction: Reduction,
    prompt: Prompt,
    plan: Plan,
    cells: Tensor | None,
    embeds: Tensor,
    row: int,
) -> Row | None:
    """What becomes of one row's visual tokens; None where the plan leaves it alone."""
    if not plan.cuts:
        return None
    if cells is None:
        raise UnsupportedError("where in the image a visual token stands is not known here, and this method asks")
    # `cells` has one for each visual token, for hidden ones and a last prompt token too; only candidates may be chosen.
    slots, here = prompt.pictured[row].nonzero()[:, 0], cells.to(embeds.device)
    text = prompt.input_ids[row][behind(prompt.attended[row], slots, prompt.input_ids.shape[1])]
    free = prompt.candidates[row][slots]
    slots, here = slots[free], here[free]
    placed = here[:, 2] >= 0
    # Sorted by image and tile: `shares` gives equal remainders to the first.
    named = torch.unique(here[placed][:, :2], dim=0)
    tiles = [placed & (here[:, :2] == tile).all(1) for tile in named]
    sizes = [int(tile.sum()) for tile in tiles]
    # ViTCoP: the tower finds the clusters that the next cut, inside the model, merges.
    following = plan.cuts[1].merged if len(plan.cuts) > 1 else 0
    kept, merged, clusters = (shares(count, sizes) for count in (plan.cuts[0].kept, plan.cuts[0].merged, following))
    done: list[tuple[Tensor, Reduced]] = []
    for tile, keep, merge, due in zip(tiles, kept, merged, clusters, strict=True):
        own = slots[tile]
        # Row and column become the index by which the tower itself numbers the patches of a whole tile.
        seen = watch.find(embeds[row, own], here[tile][:, 2] * watch.side + here[tile][:, 3], text)
        seen = replace(seen, clusters=due)
        done.append((own, reduction.reduce(seen, keep, merge)))
    # Tokens without a place go first; they stay only where the count asks for more than there are patches.
    spare = slots[~placed][: max(plan.cuts[0].total - sum(sizes), 0)]
    return _joined(done, spare, slots, embeds[row], reduction.ordered)


def _joined(done: list[tuple[Tensor, Reduced]], spare: Tensor, slots: Tensor, embeds: Tensor, ordered: bool) -> Row:
    """The tiles' outcomes as one row's."""
    content, stands, kept, anchors, leader = [embeds[spare]], [spare], [spare], [spare[:0]], dict[int, int]()
    labels = [torch.full_like(spare, -1)]
    for own, made in done:
        places = made.stands.to(own.device)
        # -1 stands for none: it borrows a slot below, and nobody's place.
        stand = torch.where(places >= 0, own[places.clamp(min=0)], -1)
        chosen = len(places) - made.merged
        leaders = stand[chosen:].tolist()
        leader |= {int(own[i]): leaders[g] for i, g in enumerate(made.groups.tolist()) if g >= 0}
        content.append(made.features.to(embeds))
        stands.append(stand)
        # Tokens that stand for none (VisionZip's [CLS], PruMerge's last one) are no patch that was selected.
        kept.append(stand[:chosen][stand[:chosen] >= 0])
        anchors.append(stand[chosen:])
        earlier = max((int(tile.max()) + 1 for tile in labels if len(tile)), default=0)
        named = made.labels.to(stand) if len(made.labels) else torch.full_like(stand, -1)
        labels.append(torch.where(named >= 0, named + earlier, -1))
    stood, made_of, label = torch.cat(stands), torch.cat(content), torch.cat(labels)
    led = torch.cat(anchors).sort().values
    # Tiles take turns in the sequence: only now is it known which anchor comes first.
    rank = {slot: number for number, slot in enumerate(led.tolist())}
    none = stood < 0
    unused = slots[~torch.isin(slots, stood)]
    # Ascending in any case: contents are fed into these slots in turn, in the order in which they come.
    into = torch.cat([stood[~none], unused[: int(none.sum())]]).sort().values
    # Only where every token stands for a patch: a -1 would sort to the front and move the others by a slot.
    if ordered:
        order = stood.argsort()
        stood, made_of, label = stood[order], made_of[order], label[order]
    stood = torch.where(stood < 0, into, stood)
    groups = {slot: rank[anchor] for slot, anchor in leader.items()}
    return Row(into, made_of, stood, torch.cat(kept).sort().values, led, groups, label)


def _measured(plan: Plan, row: Row) -> Plan:
    """The plan with as many tokens as there are: a reduction may make fewer than it was granted."""
    first = plan.cuts[0]
    left = len(row.into) - len(row.anchors)
    return replace(plan, cuts=(replace(first, kept=left, merged=len(row.anchors)), *plan.cuts[1:]))


def _at_query(layout: Layout) -> Float[Tensor, " batch"]:
    return layout.position.gather(1, layout.query[:, None])[:, 0]


def _choice(layout: Layout, rows: Sequence[Row | None], embeds: Tensor) -> Choice:
    """For the trace: in slots of the whole prompt. A row left alone keeps everything."""
    kept, anchors = torch.zeros_like(layout.candidates), torch.zeros_like(layout.candidates)
    groups = torch.full_like(layout.slot, -1)
    for index, row in enumerate(rows):
        if row is None:
            kept[index] = layout.candidates[index]
            continue
        kept[index, row.kept] = True
        anchors[index, row.anchors] = True
        for slot, group in row.groups.items():
            groups[index, slot] = group
    # No means: nothing comes back from a cut before layer 0.
    return Choice(layout, kept, anchors, groups, embeds.new_zeros(len(rows), 0, embeds.shape[2]).float())


def _shorter(prompt: Prompt, after: Layout, index: Tensor, visual: tuple[int, ...]) -> Prompt:
    """The prompt of the tokens that are left."""
    filler = index < 0
    ids = tokens.rows(prompt.input_ids, index).masked_fill(filler, 0)
    pictured: Bool[Tensor, "batch kept"] = tokens.rows(prompt.pictured, index) & ~filler
    return Prompt(ids, after.present, pictured, after.candidates, visual, prompt.text, prompt.twin)


def _cells_of(prompt: Prompt, before: Before, row: int, cells: Tensor | None) -> Tensor | None:
    """Where in the image the visual tokens stand that are left."""
    if cells is None:
        return None
    slots = prompt.pictured[row].nonzero()[:, 0]
    whole = torch.full((before.length, 4), -1)
    whole[slots.cpu()] = cells.cpu()
    left = prompt.pictured[row][before.slot[row].clamp(min=0)] & (before.slot[row] >= 0)
    # By whom a token stands for, not by the slot that it was fed into: in a reduction's own order they differ.
    return whole[before.origin[row][left].cpu()]
