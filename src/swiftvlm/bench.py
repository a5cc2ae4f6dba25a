"""Paired timing: the pruned and the unpruned model alternate in one process, on the same inputs, after a warm-up."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from swiftvlm.errors import SwiftVLMError


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of a few measurements, in seconds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Summarise at least one measurement."""
        return cls(statistics.median(seconds), min(seconds), max(seconds))


@dataclass(frozen=True)
class Timing:
    """Seconds to the first token (tower, projector and prefill) and for each later token; None if there was none."""

    prefill: Spread
    decode: Spread | None


class TokenClock(StoppingCriteria):
    """Notes when each token is ready; never stops anything."""

    def __init__(self) -> None:
        self.times = [_now()]

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Called by generate after every token; input_ids (batch, tokens)."""
        self.times.append(_now())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]


def _now() -> float:
    # Work on a GPU is only queued when generate returns from a layer: wait for it before reading the clock.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_pairs(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    pruned: Callable[[], AbstractContextManager[Any]],
    *,
    pairs: int = 5,
    new_tokens: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Timing, Timing]:
    """(vanilla, pruned) over `pairs` alternated pairs; `pruned()` is entered around each pruned generation.

    Greedy, `new_tokens` tokens at most; `progress(done)` after each pair. Raises `SwiftVLMError` for fewer than 1 pair.
    """
    if pairs < 1:
        raise SwiftVLMError(f"timing needs at least 1 pair, got {pairs}")
    sides: tuple[Callable[[], AbstractContextManager[Any]], ...] = (nullcontext, pruned)
    taken: list[list[list[float]]] = [[], []]
    # One of each in turn: a machine that warms up or slows down does so for both sides.
    for done in range(-1, pairs):
        for side, context in enumerate(sides):
            with context():
                seconds = _generate(model, inputs, new_tokens)
            # The first round warms caches and lazy initialisation up, and is thrown away.
            if done >= 0:
                taken[side].append(seconds)
        progress(done + 1)
    return _timing(taken[0]), _timing(taken[1])


def _generate(model: PreTrainedModel, inputs: Mapping[str, Any], new_tokens: int) -> list[float]:
    clock = TokenClock()
    model.generate(  # type: ignore[operator]  # a method of every generation model
        **inputs, max_new_tokens=new_tokens, do_sample=False, stopping_criteria=StoppingCriteriaList([clock])
    )
    return [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)]


def _timing(runs: list[list[float]]) -> Timing:
    # A mean over each run first: the two sides may end their answers after different numbers of tokens.
    later = [statistics.mean(run[1:]) for run in runs if len(run) > 1]
    return Timing(Spread.of([run[0] for run in runs]), Spread.of(later) if later else None)
