"""`Layout`: which tokens a padded batch holds at some depth, and how a cut makes the next one."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swiftvlm import tokens

Indexes = TypeVar("Indexes", bound="Beside")


@dataclass(frozen=True)
class Beside:
    """A record of index tensors that can follow the states from device to device (`device_map`)."""

    def to(self: Indexes, device: torch.device) -> Indexes:
        """The same record with every tensor, also in records inside it, on `device`."""
        # Not `asdict`: it would copy every tensor and make dicts of inner records.
        values = {field.name: self.__dict__[field.name] for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor | Beside)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Layout(Beside):
    """The sequence of every row between two stages.

    `slot`: index into the prompt as given (the mask column), ascending; -1 marks a filler at the left of a shorter row.
    `position`: the RoPE angle's position id. `present`: neither filler nor padding. `candidates`: visual tokens, merged
    ones included; never the last prompt token. `query`: the place of the last prompt token. `padding`: the row's own
    padding tokens, a Python count so that nothing waits for the device. `holed`: some row has fillers, so a mask must
    hide them. `moved`: positions are no longer the model's own.
    """

    slot: Int[Tensor, "batch tokens"]
    position: Float[Tensor, "batch tokens"]
    present: Bool[Tensor, "batch tokens"]
    candidates: Bool[Tensor, "batch tokens"]
    query: Int[Tensor, " batch"]
    padding: tuple[int, ...]
    holed: bool = False
    moved: bool = False


@dataclass(frozen=True)
class Next(Beside):
    """How a layout shrinks. For each new place: `index`, whose slot it is, and `source`, whose content it holds, both

    into the old sequence (-1 = filler); they differ where merged tokens move behind the kept ones. `where`: the place
    that holds each old token's content, -1 = none.
    """

    index: Int[Tensor, "batch kept"]
    source: Int[Tensor, "batch kept"]
    where: Int[Tensor, "batch tokens"]


@dataclass(frozen=True)
class Choice(Beside):
    """What one stage decided, in the places of the layout it decided on. `groups`: -1 where a token is in none."""

    layout: Layout
    kept: Bool[Tensor, "batch tokens"]
    anchors: Bool[Tensor, "batch tokens"]
    groups: Int[Tensor, "batch tokens"]
    means: Float[Tensor, "batch groups dim"]


def whole(
    attended: Bool[Tensor, "batch prompt"],
    candidates: Bool[Tensor, "batch prompt"],
    position: Tensor,
    padding: tuple[int, ...],
) -> Layout:
    """The layout of a prompt before any stage."""
    length = attended.shape[1]
    place = torch.arange(length, device=attended.device)
    # The last attended place, whichever side the padding is on.
    query = (attended * (place + 1)).argmax(dim=1)
    slot = place.expand(attended.shape)
    # In float: the mean of a group's positions need not be whole.
    return Layout(slot, position.expand(attended.shape).float(), attended, candidates, query, padding)


def shrink(
    layout: Layout, survivors: Bool[Tensor, "batch tokens"], length: int, behind: Bool[Tensor, "batch tokens"] | None
) -> Next:
    """Keep each row's survivors in order, padded to `length` with the row's own padding, then with fillers.

    Reusing padding keeps a cut that drops nothing the identity, and a right-padded row right-padded. `behind`: the
    candidates whose contents move behind all other surviving candidates.
    """
    # Survivors are worth 2, the row's own padding 1, and a dropped token 0: taken as a filler, it must be hidden.
    padding = ~layout.present & (layout.slot >= 0)
    worth = survivors.to(torch.int8) * 2 + padding.to(torch.int8)
    order = worth.sort(dim=1, descending=True, stable=True).indices[:, :length]
    index = order.masked_fill(worth.gather(1, order) == 0, -1).sort(dim=1).values
    source = index if behind is None else _moved_behind(layout, index, behind)
    rows, old = layout.slot.shape
    # One column too many, so that fillers have somewhere to write to.
    where = torch.full((rows, old + 1), -1, device=index.device)
    where.scatter_(1, source.masked_fill(source < 0, old), torch.arange(length, device=index.device).expand(rows, -1))
    return Next(index, source, where[:, :old])


def _moved_behind(layout: Layout, index: Tensor, behind: Tensor) -> Tensor:
    """Permute contents among the visual places of each row: those marked last, otherwise in order."""
    visual = tokens.rows(layout.candidates, index) & (index >= 0)
    rank = torch.where(visual, tokens.rows(behind, index).long(), 2)
    order = rank.sort(dim=1, stable=True).indices
    # All that is not visual ends both lists, in the same order, and so goes back to where it was.
    places = (~visual).to(torch.int8).sort(dim=1, stable=True).indices
    return torch.empty_like(index).scatter_(1, places, index.gather(1, order))


def cut(layout: Layout, step: Next, real: tuple[int, ...], positions: str) -> Layout:
    """The layout behind a stage that leaves each row `real` present tokens; `positions` as in `Stage`."""
    if positions == "gapped":
        # Counted in front of the cut: what it drops leaves gaps (ViTCoP's last cut).
        layout = replace(layout, position=_counted(layout, layout.present, layout.position))
    length = step.index.shape[1]
    padding = tuple(min(length - left, old) for left, old in zip(real, layout.padding, strict=True))
    # Padding that fills up a row is no hole: the model's own mask hides it already.
    holed = any(left + pad < length for left, pad in zip(real, padding, strict=True))
    filler = step.index < 0
    slot = tokens.rows(layout.slot, step.index).masked_fill(filler, -1)
    present = tokens.rows(layout.present, step.index) & ~filler
    # RoPE goes with the content, masks with the place, which is `index`.
    position = tokens.rows(layout.position, step.source)
    if positions == "renumbered":
        position = _counted(layout, present, position)
    return Layout(
        slot,
        position,
        present,
        tokens.rows(layout.candidates, step.index) & ~filler,
        step.where.gather(1, layout.query[:, None])[:, 0],
        padding,
        holed,
        layout.moved or positions != "original",
    )


def _counted(
    layout: Layout, present: Bool[Tensor, "batch tokens"], position: Float[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Positions with each row's present tokens counted on from that of its first one."""
    # From the row's own first position: behind padding, RoPE angles stay what the model was given.
    first = layout.position.masked_fill(~layout.present, torch.inf).amin(1, keepdim=True)
    return torch.where(present, first + (present.cumsum(1) - 1), position)
