"""Layer profiles by model: which pruning layers were found, how, and with what (`*.json` beside this file).

A user's own profiles, written by `swiftvlm profile --save`, stand in the folder `SWIFTVLM_PROFILES` names (by default
`~/.swiftvlm/profiles`) and come before the shipped ones. A profile is that of a model if their shapes are equal, the
vocabulary aside, which fine-tuned models of one family pad differently.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from swiftvlm.amounts import Number
from swiftvlm.errors import SelectionError
from swiftvlm.shape import ModelShape

__all__ = ["LayerProfile", "own_folder", "profile_for"]

SHIPPED = Path(__file__).parent


@dataclass(frozen=True)
class LayerProfile:
    """One file. `layers`: pruning layers from 1; `source`: "measured" or "paper"; `values`: x_1 ... x_L if known.

    `birth`: what it was measured with (model fingerprint, versions, hardware, share, questions, command, commit).
    `fields`: values of other hyper-parameters that did best on this model, by method; nothing reads them unasked.
    """

    name: str
    source: str
    layers: tuple[int, ...]
    shape: ModelShape
    values: tuple[Number, ...] = ()
    birth: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As a file that `read` reads; folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def read(path: Path) -> LayerProfile:
    """A profile's file. Raises `SelectionError` for anything else."""
    try:
        data = json.loads(path.read_text())
        data["shape"] = ModelShape(**data["shape"])
        data["layers"], data["values"] = tuple(data["layers"]), tuple(data["values"])
        return LayerProfile(**data)
    except (OSError, ValueError, TypeError, KeyError) as wrong:
        raise SelectionError(f"{path} is no layer profile ({wrong}); remove it, or write it anew") from None


def own_folder() -> Path:
    """Where a user's profiles stand."""
    return Path(os.environ.get("SWIFTVLM_PROFILES") or Path.home() / ".swiftvlm" / "profiles")


def all_profiles(*folders: Path) -> Iterator[LayerProfile]:
    """The user's profiles, then the shipped ones, each in order of name; or those of `folders`."""
    for folder in folders or (own_folder(), SHIPPED):
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            yield _cached(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _cached(path: Path, changed: int) -> LayerProfile:
    return read(path)


def profile_for(shape: ModelShape, *folders: Path) -> LayerProfile | None:
    """The first profile of a model of this shape, or None. Raises `SelectionError` for a broken file."""
    return next((profile for profile in all_profiles(*folders) if _widths(profile.shape) == _widths(shape)), None)


def _widths(shape: ModelShape) -> tuple[int, ...]:
    return shape.layers, shape.hidden, shape.intermediate, shape.heads, shape.kv_heads, shape.head_width
