"""What a run did to every visual token, stage by stage: the numbers behind the figures, without any drawing."""

from typing import Literal, NamedTuple

from swiftvlm.errors import TraceError
from swiftvlm.trace import Run

Kind = Literal["kept", "bypassed", "absorbed", "dropped"]


class Fate(NamedTuple):
    """What a stage did to one visual token. `speaker`: the slot that stands for it in the next layers, None = none."""

    kind: Kind
    speaker: int | None


Story = dict[int, Fate]  # slot -> fate, slots ascending


def fates(run: Run, row: int) -> list[Story]:
    """For each stage, slot -> `Fate` of every visual token of the row, whether it was still there or not.

    "kept": selected. "bypassed": not selected, but among the next stage's candidates. "absorbed": part of a merged
    token, without return; it shares that token's fate at later stages. "dropped": gone, now or earlier. A slot that is
    its own speaker without being kept is an anchor: it holds its group's merged token. Slots are taken to keep their
    contents, which methods that move merged tokens behind the kept ones (`Merge(place="behind")`) do not do beyond
    their first stage. Raises `TraceError` if the run has no such row.
    """
    if not 0 <= row < len(run.visual):
        raise TraceError(f"row {row} is not in this run: it has rows 0 to {len(run.visual) - 1}")
    if not run.after:
        return []
    told: list[Story] = []
    home: dict[int, int | None] = {slot: slot for slot in run.candidates[0][row].tolist()}
    for stage in range(len(run.after)):
        decided = _decisions(run, stage, row)
        told.append({slot: _fate_of(slot, place, decided) for slot, place in home.items()})
        # Where the next stage finds each token: bypassed ones come home, absorbed ones stay in their anchor's slot.
        home = {slot: _next_home(place, decided) for slot, place in home.items()}
    return told


def _decisions(run: Run, stage: int, row: int) -> Story:
    """The fate of each of a stage's own candidates."""
    candidates, groups, anchors, kept = (
        stages[stage][row].tolist() for stages in (run.candidates, run.groups, run.anchors, run.kept)
    )
    following = set(run.candidates[stage + 1][row].tolist()) if stage + 1 < len(run.after) else set()
    # The run does not name what a stage did with its rest, but only a bypass lets all of it compete again.
    returns = set(candidates) - set(kept) <= following
    decided: Story = {slot: Fate("kept", slot) for slot in kept}
    for slot, group in zip(candidates, groups, strict=True):
        if slot not in decided:
            kind: Kind = "bypassed" if returns else "absorbed" if group >= 0 else "dropped"
            decided[slot] = Fate(kind, anchors[group] if group >= 0 else None)
    return decided


def _fate_of(slot: int, place: int | None, decided: Story) -> Fate:
    """The fate of a token whose content lies in slot `place`; None: it was dropped before."""
    if place is None:
        return Fate("dropped", None)
    fate = decided[place]
    # Found in another token's slot, it was absorbed before: whatever becomes of that slot, it stays part of a mean.
    return fate if place == slot or fate.kind == "dropped" else Fate("absorbed", fate.speaker)


def _next_home(place: int | None, decided: Story) -> int | None:
    fate = Fate("dropped", None) if place is None else decided[place]
    # The speaker of a kept token is its own slot, of a dropped one None.
    return place if fate.kind == "bypassed" else fate.speaker


def anchors_of(story: Story) -> list[int]:
    """The slots that hold the merged tokens a stage made, ascending."""
    return [slot for slot, fate in story.items() if fate.speaker == slot and fate.kind != "kept"]
