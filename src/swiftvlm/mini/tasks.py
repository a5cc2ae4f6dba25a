"""The embedded model's questions as tasks that can be evaluated."""

import math
from collections.abc import Sequence
from functools import partial

from swiftvlm.errors import SwiftVLMError
from swiftvlm.evaluation import Sample, Task
from swiftvlm.scenes import (
    GRID,
    LOCALIZATION,
    PATCH,
    POOL_SIZE,
    POOL_VERSION,
    POOLS,
    SIDE,
    TASKS,
    VISUAL_TOKENS,
    Box,
    Item,
    chance,
    draw,
    items,
)


def embedded_task(name: str, limit: int = POOL_SIZE, source: str = "test") -> Task:
    """One of the six tasks of the embedded model, its first `limit` questions. Raises as `check_task`."""
    check_task(name, limit, source)
    samples = tuple(_sample(item, source) for item in items(name, limit, source))
    return Task(name, POOL_VERSION, name in LOCALIZATION, partial(chance, name), samples)


def check_task(name: str, limit: int, source: str) -> None:
    """Tell a mistake before hundreds of scenes are made.

    Raises:
        SwiftVLMError: no such task or pool, or a limit outside 1 to 500.
    """
    if source not in POOLS:
        raise SwiftVLMError(f"no pool is called {source!r}; there are {', '.join(POOLS)}")
    if name not in TASKS:
        raise SwiftVLMError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    if not 1 <= limit <= POOL_SIZE:
        raise SwiftVLMError(f"a task has {POOL_SIZE} questions; a limit is 1 to {POOL_SIZE}, got {limit}")


def _sample(item: Item, source: str) -> Sample:
    question, seed = item.question, item.scene.seed
    box = question.box
    shares = None if box is None else (box.left / SIDE, box.top / SIDE, box.right / SIDE, box.bottom / SIDE)
    return Sample(
        question.task,
        f"{source}/{question.task}/{seed}",
        f"{source}/{seed}",
        partial(draw, item.scene),
        question.text,
        question.answer,
        shares,
        _touched([*(thing.box for thing in item.scene.things), *(sign.box for sign in item.scene.signs)]),
        # A box asks for one thing; of a word, every sign that says it is a target.
        _middles([*([box] if box else []), *(sign.box for sign in item.scene.signs if sign.text == question.answer)]),
        VISUAL_TOKENS,
    )


def _middles(boxes: Sequence[Box]) -> tuple[int, ...]:
    """Indexes of the patches under the middles of these boxes."""
    return tuple(sorted({int(y / PATCH) * GRID + int(x / PATCH) for x, y in (box.center for box in boxes)}))


def _touched(boxes: Sequence[Box]) -> tuple[int, ...]:
    """Indexes of the patches that these boxes cover in part."""
    found = set()
    for box in boxes:
        left, top, right, bottom = (value / PATCH for value in box)
        rows, columns = range(int(top), min(GRID, math.ceil(bottom))), range(int(left), min(GRID, math.ceil(right)))
        found |= {row * GRID + column for row in rows for column in columns}
    return tuple(sorted(found))
