"""`Trace`: what pruning did, prompt by prompt, as plain records that travel as JSON."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from swiftvlm.amounts import Number
from swiftvlm.errors import TraceError

FORMAT = 1
Stages = tuple[tuple[Tensor, ...], ...]  # [stage][row]


@dataclass(frozen=True, eq=False)
class Run:
    """One prefill. Indexes are into each row's `input_ids` as given, padding included.

    `visual`, `text`: tokens a row. `per_row[row][layer]`: visual tokens at the input of a layer, merged ones included.
    `after[stage]`: layers that had run when a stage acted. `kept[stage][row]`: selected tokens, ascending.
    `anchors[stage][row]`: slots that hold merged tokens. `candidates[stage][row]`: the tokens a stage chose from, and
    `groups[stage][row]` the group of each (its anchor's rank), -1 = kept or dropped. `cells[row]`: (visual, 4) image,
    tile, grid row, grid column of each visual token, -1 = no place; empty where unknown. `kv_bytes`: the batch's whole
    cache after the prefill, text included. `flops`: the batch's exact count (2 per MAC), and `paper_flops` in the
    paper's mixed unit. `states[layer]`: (batch, tokens, dim) behind a layer, for `record_states`.
    """

    method: str
    visual: tuple[int, ...]
    text: tuple[int, ...]
    per_row: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]
    kept: Stages
    anchors: Stages
    candidates: Stages
    groups: Stages
    cells: tuple[Tensor, ...]
    kv_bytes: int
    vanilla_kv_bytes: int
    flops: Number
    vanilla_flops: Number
    paper_flops: Number
    states: dict[int, Tensor] = field(default_factory=dict)

    @property
    def tokens_per_layer(self) -> tuple[int, ...]:
        """Visual tokens at the input of each layer, row 0."""
        return self.per_row[0]

    @property
    def average_tokens(self) -> float:
        """Visual tokens averaged over the layers, row 0: what a budget promises."""
        return sum(self.per_row[0]) / len(self.per_row[0])

    def __eq__(self, other: object) -> bool:
        """Equal in everything; tensors compare by value."""
        return isinstance(other, Run) and _plain(self) == _plain(other)

    __hash__ = object.__hash__


class Trace:
    """All runs inside one `prune`; attributes of the last `Run` can be read directly (`trace.average_tokens`)."""

    def __init__(self, runs: tuple[Run, ...] = ()) -> None:
        self._runs: list[Run | Callable[[], Run]] = list(runs)

    def add(self, run: Callable[[], Run]) -> None:
        """Append a run that is put together when first read, so that no prefill waits for its own record."""
        self._runs.append(run)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every prefill so far, oldest first."""
        # Put together now: reading index tensors back waits for the device, which a prefill must not do.
        self._runs = [run if isinstance(run, Run) else run() for run in self._runs]
        return tuple(run for run in self._runs if isinstance(run, Run))

    @property
    def last(self) -> Run:
        """The latest prefill. Raises `TraceError` before the first."""
        if not self._runs:
            raise TraceError(f"the trace holds {len(self._runs)} runs: no prompt has run inside this prune() yet")
        return self.runs[-1]

    def __getattr__(self, name: str) -> Any:
        """The last run's attribute."""
        if name.startswith("_") or name not in {*(f.name for f in fields(Run)), "tokens_per_layer", "average_tokens"}:
            raise AttributeError(f"a trace has no attribute {name!r}")
        return self.last.__getattribute__(name)

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __eq__(self, other: object) -> bool:
        """Equal if all runs are."""
        return isinstance(other, Trace) and self.runs == other.runs

    __hash__ = object.__hash__

    def to_json(self) -> str:
        """All runs as JSON; recorded states are left out (they are large: save them with safetensors)."""
        return json.dumps({"format": FORMAT, "runs": [_plain(run) for run in self.runs]})

    @classmethod
    def from_json(cls, text: str) -> "Trace":
        """Read what `to_json` wrote. Raises `TraceError` for anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise TraceError(f"this trace has format {data['format']!r}, this version reads {FORMAT}")
            return cls(tuple(_revive(run) for run in data["runs"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as broken:
            # A TraceError is a ValueError, too; this one says more already.
            if isinstance(broken, TraceError):
                raise
            raise TraceError(f"not a trace written by Trace.to_json: {broken!r}") from None


TENSORS = {"kept": 2, "anchors": 2, "candidates": 2, "groups": 2, "cells": 1}  # levels of tuples above the tensors


def _plain(run: Run) -> dict[str, Any]:
    return {f.name: _lists(run.__dict__[f.name]) for f in fields(Run) if f.name != "states"}


def _lists(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _revive(data: dict[str, Any]) -> Run:
    names = {f.name for f in fields(Run)} - {"states"}
    # Strict both ways: a field this version does not know would be lost without a word.
    if set(data) != names:
        raise TraceError(f"a run must have the fields {sorted(names)}, got {sorted(data)}")
    broken = [name for name in TENSORS if not isinstance(data[name], list)]
    if broken:
        raise TypeError(f"{', '.join(broken)} must be lists")
    # 9 levels are more than any field has: what is not in `TENSORS` never becomes a tensor.
    values = {name: _tuples(value, TENSORS.get(name, 9)) for name, value in data.items()}
    # A row without an image has no cells, and an empty list does not say how wide it was.
    return Run(**{**values, "cells": tuple(cells.reshape(-1, 4) for cells in values["cells"])})


def _tuples(value: Any, levels: int) -> Any:
    if levels == 0:
        # Refuses more than it shapes: tokens are (n,) and cells (n, 4), anything else raises, and `from_json` says so.
        return torch.tensor(value, dtype=torch.long).reshape(
            len(value), *([4] if value and isinstance(value[0], list) else [])
        )
    return tuple(_tuples(item, levels - 1) for item in value) if isinstance(value, list) else value
