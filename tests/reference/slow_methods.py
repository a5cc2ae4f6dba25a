"""Slow, plain FastV and SwiftVLM on top of slow_llama, for one row at a time.

"Slot" is always an index into the row's input_ids. All lists of slots are ascending. Python loops over tokens
and groups on purpose: this file is meant to be checked by reading it against the method's description.

The row may be longer than its prompt: the tokens after it are text (teacher-forced answers). Selection looks
only at the prompt, and at every layer the later tokens see the slots that are present at that layer. So the
logits equal those of a prefill on the prompt and cached decode steps after it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .slow_llama import Model, attention_row, inverse_frequencies, layer_count, read_logits, run_layer, text_config
from .slow_ours import Cells, coordinates_first, spread_slots

Mode = Literal["bypass", "merge", "drop"]
SoftmaxOver = Literal["all", "visual"]
Anchors = Literal["strided", "top", "grid"]
Positions = Literal["original", "renumbered"]
MergedPosition = Literal["anchor", "mean"]


@dataclass
class SlowResult:
    """What one run did. All but logits and present are lists with one entry per stage, in running order.

    logits: (tokens, vocab); rows of slots that are absent at the end mean nothing.
    present: per LM layer, the slots that took part in it.
    kept: the selected visual slots.
    anchors: the slots that hold merged tokens.
    groups: every grouped slot (anchors too) -> its group; groups are numbered by ascending anchor.
    scores: every candidate slot -> its score.
    states: (tokens, hidden) right after the stage was applied; anchors hold merged tokens, absent slots are
        frozen.
    """

    logits: Tensor
    present: list[list[int]] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)
    anchors: list[list[int]] = field(default_factory=list)
    groups: list[dict[int, int]] = field(default_factory=list)
    scores: list[dict[int, float]] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


@dataclass
class Group:
    """A group of low visual tokens, and what is needed to bring its members back."""

    anchor: int  # its slot holds the merged token
    members: list[int]  # slots, anchor included
    stored: dict[int, Tensor]  # member -> its (hidden,) state before merging
    merged: Tensor  # (hidden,) plain mean of the stored states


@dataclass
class Row:
    """The running state of one row."""

    states: Tensor  # (tokens, hidden), all slots at all times
    positions: Tensor  # (tokens,) float, RoPE positions; those of absent slots mean nothing
    present: list[bool]  # per slot: does it take part in the next layer
    candidates: list[int]  # visual slots that compete at the next stage (after restoring)
    groups: list[Group] = field(default_factory=list)  # groups whose members wait to be brought back


def embed_row(model: Model, input_ids: Tensor, **vision: Any) -> Tensor:
    """Input embeddings of one row -> (tokens, hidden) float32.

    input_ids (tokens,) or (1, tokens). vision: what get_image_features of the model wants for this row, that
    is pixel_values, and image_sizes for LLaVA-NeXT; nothing for a row without images. The features of all
    images (for LLaVA-NeXT with their newline features) go, in order, to the slots that hold the image token.
    """
    with torch.no_grad():
        ids = [int(token) for token in input_ids.reshape(-1)]
        features = _image_features(model, vision)
        wanted = ids.count(model.config.image_token_id)
        if wanted != len(features):
            raise ValueError(f"{wanted} image tokens but {len(features)} image features")
        table = model.model.language_model.embed_tokens.weight
        rows, used = [], 0
        for token in ids:
            if token == model.config.image_token_id:
                rows.append(features[used])
                used += 1
            else:
                rows.append(table[token].float())
        return torch.stack(rows)


def _image_features(model: Model, vision: dict[str, Any]) -> list[Tensor]:
    """All image features of the row, one (hidden,) tensor each, in the order of the image tokens."""
    if not vision:
        return []
    # transformers 5: pooler_output of the BaseModelOutputWithPooling lists one (features, hidden) per image.
    per_image = model.model.get_image_features(**vision, return_dict=True).pooler_output
    return [feature.float() for image in per_image for feature in image]


def slow_vanilla(model: Model, embeds: Tensor) -> SlowResult:
    """The unpruned model on embeds (tokens, hidden)."""
    with torch.no_grad():
        row = _new_row(embeds, [])
        present = []
        for layer_index in range(layer_count(model)):
            present.append(_present_slots(row))
            row.states = run_layer(model, layer_index, row.states, row.positions, row.present)
        return SlowResult(logits=read_logits(model, row.states), present=present)


def slow_fastv(
    model: Model, embeds: Tensor, visual: Tensor, prompt_len: int, *, after: int = 2, keep: int
) -> SlowResult:
    """FastV: `after` layers run in full, then only the `keep` best visual tokens stay, at old positions.

    embeds (tokens, hidden), visual (tokens,) bool. The score is the last prompt token's row of the attention
    map of layers[after - 1].
    """
    if not 1 <= after <= layer_count(model):
        raise ValueError(f"after={after} is not a number of layers of this model")
    with torch.no_grad():
        row = _new_row(embeds, _candidate_slots(visual, prompt_len))
        result = SlowResult(logits=torch.empty(0))
        for layer_index in range(layer_count(model)):
            result.present.append(_present_slots(row))
            layer_input = row.states
            row.states = run_layer(model, layer_index, row.states, row.positions, row.present)
            if layer_index == after - 1:
                scores = _score(model, layer_index, layer_input, row, prompt_len, "all", True)
                kept = _best(scores, keep)
                for slot in row.candidates:
                    row.present[slot] = slot in kept
                _record(result, row, scores, kept, [])
        result.logits = read_logits(model, row.states)
        return result


def slow_swiftvlm(
    model: Model,
    embeds: Tensor,
    visual: Tensor,
    prompt_len: int,
    *,
    layers: tuple[int, ...] = (3, 11, 15),
    counts: tuple[int, ...],
    bypass: tuple[bool, ...] | None = None,
    mode: Mode = "bypass",
    softmax_over: SoftmaxOver = "all",
    rope: bool = True,
    anchors: Anchors = "strided",
    refine: int = 0,
    positions: Positions = "original",
    merged_position: MergedPosition = "anchor",
    coordinates: float = 0.0,
    cells: Cells | None = None,
) -> SlowResult:
    """SwiftVLM on embeds (tokens, hidden) with visual (tokens,) bool.

    layers: the paper's 1-based pruning layers; the first stage acts after its layer, others before theirs.
    counts: (k1, Z1, k2, Z2, ..., k_last): visual tokens kept and groups made per stage.
    bypass: per stage, False drops the rest there for good (its Z is ignored); the last stage always drops,
        whatever its entry says. None: every stage but the last groups.
    mode: "bypass" brings grouped tokens back at the next stage; "merge" does not (the merged tokens compete
        there instead); "drop" never groups.
    softmax_over: the score's softmax runs over all causal keys, or only over the candidates.
    rope: whether the score's queries and keys carry RoPE.
    anchors: "strided" takes evenly spaced low tokens, "top" the best-scored ones, "grid" ones far apart in the image.
    refine: how often groups are re-formed around their centroids.
    positions: "renumbered" gives present slots 0..n-1 after every stage, and before scoring when slots were
        restored.
    merged_position: where a merged token sits; without effect when positions are renumbered.
    coordinates: the share of the candidates that every stage rates first for their positions alone.
    cells: where every visual slot stands in the image; only "grid" asks.
    """
    _check_arguments(model, layers, counts, bypass)
    last = len(layers) - 1
    grouping = [stage < last and mode != "drop" and (bypass is None or bypass[stage]) for stage in range(len(layers))]
    with torch.no_grad():
        row = _new_row(embeds, _candidate_slots(visual, prompt_len))
        result = SlowResult(logits=torch.empty(0))
        layer_input = row.states
        stage = 0
        for layers_run in range(layer_count(model) + 1):
            # A while, not an if: layers (3, 4) put two stages after the same 3 layers.
            while stage <= last and layers_run == _layers_before(layers, stage):
                _restore(row)
                if positions == "renumbered":
                    _renumber(row)
                # The first stage uses the map of the layer that has just run: it scores that layer's input.
                scored_states = layer_input if stage == 0 else row.states
                scores = _score(model, layers[stage] - 1, scored_states, row, prompt_len, softmax_over, rope)
                angles = {slot: float(row.positions[slot]) for slot in scores}
                scores = coordinates_first(scores, angles, inverse_frequencies(text_config(model)), coordinates)
                kept = _best(scores, counts[2 * stage])
                low = [slot for slot in row.candidates if slot not in kept]
                groups: list[Group] = []
                if grouping[stage] and low:
                    if mode == "bypass" and counts[2 * stage + 1] == 0:
                        raise ValueError(f"stage {stage}: low tokens need a group to be brought back with")
                    groups = _make_groups(row.states, low, counts[2 * stage + 1], scores, anchors, refine, cells)
                _apply(row, kept, groups, mode, merged_position)
                if positions == "renumbered":
                    _renumber(row)
                _record(result, row, scores, kept, groups)
                stage += 1
            if layers_run < layer_count(model):
                result.present.append(_present_slots(row))
                layer_input = row.states
                row.states = run_layer(model, layers_run, row.states, row.positions, row.present)
        result.logits = read_logits(model, row.states)
        return result


def _check_arguments(
    model: Model, layers: tuple[int, ...], counts: tuple[int, ...], bypass: tuple[bool, ...] | None
) -> None:
    """Refuse schedules without a meaning."""
    if list(layers) != sorted(set(layers)) or not layers or layers[0] < 1 or layers[-1] > layer_count(model):
        raise ValueError(f"layers must rise within 1..{layer_count(model)}, not {layers}")
    if len(counts) != 2 * len(layers) - 1 or min(counts) < 0:
        raise ValueError(f"{len(layers)} layers need {2 * len(layers) - 1} counts >= 0, not {counts}")
    if bypass is not None and len(bypass) != len(layers):
        raise ValueError(f"bypass needs one entry per layer, not {bypass}")


def _layers_before(layers: tuple[int, ...], stage: int) -> int:
    """How many layers have run when the stage acts: its layer included for the first stage only."""
    return layers[0] if stage == 0 else layers[stage] - 1


def _candidate_slots(visual: Tensor, prompt_len: int) -> list[int]:
    """Visual slots of the prompt (visual (tokens,) bool), without its last token: that one counts as text."""
    return [slot for slot in range(prompt_len - 1) if bool(visual[slot])]


def _new_row(embeds: Tensor, candidates: list[int]) -> Row:
    """A row before its first layer: everything present, positions 0, 1, 2, ..."""
    tokens = embeds.shape[0]
    return Row(
        states=embeds.float().clone(),
        positions=torch.arange(tokens, dtype=torch.float32),
        present=[True] * tokens,
        candidates=candidates,
    )


def _present_slots(row: Row) -> list[int]:
    """The slots that take part in the next layer."""
    return [slot for slot, here in enumerate(row.present) if here]


def _renumber(row: Row) -> None:
    """Positions 0..n-1 over the present slots, text and later tokens included, in slot order."""
    row.positions = row.positions.clone()
    for number, slot in enumerate(_present_slots(row)):
        row.positions[slot] = float(number)


def _score(
    model: Model,
    layer_index: int,
    states: Tensor,
    row: Row,
    prompt_len: int,
    softmax_over: SoftmaxOver,
    rope: bool,
) -> dict[int, float]:
    """Candidate slot -> attention the last prompt token pays to it, from states (tokens, hidden)."""
    if not row.candidates:
        return {}
    keys = row.candidates if softmax_over == "visual" else _present_slots(row)
    keys = [slot for slot in keys if slot < prompt_len]  # causal: the query is the prompt's last token
    attention = attention_row(model, layer_index, states, row.positions, prompt_len - 1, keys, rope)
    return {slot: float(attention[slot]) for slot in row.candidates}


def _best(scores: dict[int, float], count: int) -> list[int]:
    """The `count` best-scored slots (or all), ascending; of equal scores the lower slot wins."""
    ranked = sorted(scores, key=lambda slot: (-scores[slot], slot))
    return sorted(ranked[:count])


def _make_groups(
    states: Tensor,
    low: list[int],
    group_count: int,
    scores: dict[int, float],
    anchors: Anchors,
    refine: int,
    cells: Cells | None = None,
) -> list[Group]:
    """Group the low slots (at least one) on states (tokens, hidden); groups ascend by anchor."""
    anchor_slots = _anchor_slots(low, group_count, scores, anchors, cells)
    if not anchor_slots:
        return []
    centres = [states[anchor] for anchor in anchor_slots]
    group_of = _assign(states, low, anchor_slots, centres)
    for _ in range(refine):
        centres = [_mean(states, _members(group_of, number)) for number in range(len(anchor_slots))]
        group_of = _assign(states, low, anchor_slots, centres)
    groups = []
    for number, anchor in enumerate(anchor_slots):
        members = _members(group_of, number)
        stored = {slot: states[slot].clone() for slot in members}
        groups.append(Group(anchor, members, stored, _mean(states, members)))
    return groups


def _anchor_slots(
    low: list[int], group_count: int, scores: dict[int, float], anchors: Anchors, cells: Cells | None = None
) -> list[int]:
    """Which low slots are anchors, ascending; at most one per low slot."""
    group_count = min(group_count, len(low))
    if group_count == 0:
        return []
    if anchors == "top":
        return _best({slot: scores[slot] for slot in low}, group_count)
    if anchors == "grid":
        return spread_slots(low, cells or {}, group_count)
    step = len(low) // group_count
    return [low[number * step] for number in range(group_count)]


def _assign(states: Tensor, low: list[int], anchor_slots: list[int], centres: list[Tensor]) -> dict[int, int]:
    """Low slot -> group with the most similar centre; an anchor always stays in its own group."""
    group_of = {}
    for slot in low:
        if slot in anchor_slots:
            group_of[slot] = anchor_slots.index(slot)
            continue
        best = 0
        for number in range(1, len(centres)):
            # Strictly better only: of equal similarities the lower anchor wins.
            if _cosine(states[slot], centres[number]) > _cosine(states[slot], centres[best]):
                best = number
        group_of[slot] = best
    return group_of


def _cosine(a: Tensor, b: Tensor) -> float:
    """Cosine similarity of two (hidden,) states."""
    return float((a @ b) / (a.norm() * b.norm()))


def _members(group_of: dict[int, int], number: int) -> list[int]:
    """Slots of one group, ascending."""
    return [slot for slot in sorted(group_of) if group_of[slot] == number]


def _mean(states: Tensor, slots: list[int]) -> Tensor:
    """Plain mean of the (hidden,) states of some slots."""
    total = torch.zeros(states.shape[1])
    for slot in slots:
        total = total + states[slot]
    return total / len(slots)


def _restore(row: Row) -> None:
    """Bring the members of all waiting groups back, moved by what their merged token went through."""
    row.states, row.positions = row.states.clone(), row.positions.clone()
    for group in row.groups:
        offset = row.states[group.anchor] - group.merged
        for slot in group.members:
            row.states[slot] = group.stored[slot] + offset
            # The anchor's own position, too: its merged token may have sat elsewhere.
            row.positions[slot] = float(slot)
            row.present[slot] = True
    row.groups = []


def _apply(row: Row, kept: list[int], groups: list[Group], mode: Mode, merged_position: MergedPosition) -> None:
    """Leave the kept slots and one merged token per group; say who competes at the next stage."""
    row.states, row.positions = row.states.clone(), row.positions.clone()
    for slot in row.candidates:
        row.present[slot] = slot in kept
    grouped: list[int] = []
    for group in groups:
        if merged_position == "mean":
            row.positions[group.anchor] = _mean(row.positions[:, None], group.members)[0]
        row.states[group.anchor] = group.merged
        row.present[group.anchor] = True
        # Bypassed members come back and compete again; without bypass only the merged token itself lives on.
        grouped += group.members if mode == "bypass" else [group.anchor]
    row.candidates = sorted(kept + grouped)
    row.groups = groups if mode == "bypass" else []


def _record(result: SlowResult, row: Row, scores: dict[int, float], kept: list[int], groups: list[Group]) -> None:
    """Append one stage's outcome to the result."""
    result.scores.append(scores)
    result.kept.append(kept)
    result.anchors.append([group.anchor for group in groups])
    result.groups.append({slot: number for number, group in enumerate(groups) for slot in group.members})
    result.states.append(row.states.clone())
