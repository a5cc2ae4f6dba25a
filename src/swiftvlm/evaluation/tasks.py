"""What is evaluated: samples with a question, a true answer, and a picture that is made when it is needed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from swiftvlm.errors import SwiftVLMError
from swiftvlm.mini import pool
from swiftvlm.mini.drawing import draw
from swiftvlm.mini.questions import LOCALIZATION, TASKS
from swiftvlm.mini.scenes import GRID, PATCH, SIDE, Box
from swiftvlm.mini.words import POOLS
from swiftvlm.plans import Number


@dataclass(frozen=True)
class Sample:
    """One question. `image` names the picture (samples of several tasks share it); `box`: shares of its sides.

    `shown`: the patches, row by row, that any thing or sign of the picture touches; `target`: the one under
    the middle of the box, or of each sign, that is the answer.
    """

    task: str
    key: str
    image: str
    picture: Callable[[], Image.Image]
    question: str
    answer: str
    box: tuple[Number, Number, Number, Number] | None = None
    shown: tuple[int, ...] = ()
    target: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """A named set of samples, versioned; `chance()`: accuracy without looking, in [0, 1]."""

    name: str
    version: int
    localization: bool
    # A function: it takes the whole pool's scenes, and only tables ask.
    chance: Callable[[], Number]
    samples: tuple[Sample, ...]

    def shortened(self, count: int) -> "Task":
        """The task with its first `count` samples."""
        return replace(self, samples=self.samples[:count])


def embedded_task(name: str, limit: int = pool.SIZE, source: str = "test") -> Task:
    """One of the six tasks of the embedded model, its first `limit` questions. Raises as `check_task`."""
    check_task(name, limit, source)
    samples = tuple(_sample(item, source) for item in pool.items(name, limit, source))
    return Task(name, pool.VERSION, name in LOCALIZATION, partial(pool.chance, name), samples)


def check_task(name: str, limit: int, source: str) -> None:
    """Tell a mistake before hundreds of scenes are made.

    Raises:
        SwiftVLMError: no such task or pool, or a limit outside 1 to 500.
    """
    if source not in POOLS:
        raise SwiftVLMError(f"no pool is called {source!r}; there are {', '.join(POOLS)}")
    if name not in TASKS:
        raise SwiftVLMError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    if not 1 <= limit <= pool.SIZE:
        raise SwiftVLMError(f"a task has {pool.SIZE} questions; a limit is 1 to {pool.SIZE}, got {limit}")


def _sample(item: pool.Item, source: str) -> Sample:
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
