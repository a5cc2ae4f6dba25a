"""The pools: 500 fixed questions a task, the same on every machine. `POOL_VERSION` changes with any of them."""

import random
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from swiftvlm.amounts import Number
from swiftvlm.scenes.questions import LOCALIZATION, Question, ask
from swiftvlm.scenes.words import POOLS
from swiftvlm.scenes.world import GRID, Scene, scene

POOL_VERSION = 1
POOL_SIZE, QUICK_SIZE = 500, 50
VISUAL_TOKENS = GRID * GRID  # tokens of a picture


@dataclass(frozen=True)
class Item:
    """A question of a pool and the scene it is about."""

    scene: Scene
    question: Question


@lru_cache(maxsize=16)
def items(task: str, count: int = POOL_SIZE, pool: str = "test") -> tuple[Item, ...]:
    """The first `count` questions of a task in a pool, at most one a scene; answers of `pope` alternate.

    Raises:
        KeyError: no such task or pool.
    """
    source = POOLS[pool]
    found: list[Item] = []
    seed = 0
    # In order of seeds, so that fewer questions are the first of more.
    while len(found) < count:
        # Far from the seeds that training draws, so that questions on the training pool are held out too.
        one = scene(source, seed + (2 * 10**9 if pool == "train" else 0))
        # Seeded by a text, which is hashed alike everywhere (SHA-512, not `hash`): the same questions on every machine.
        question = ask(random.Random(f"{POOL_VERSION}:{task}:{one.seed}"), one, task)
        wanted = task != "pope" or (question and question.answer == ("yes", "no")[len(found) % 2])
        if question and wanted:
            found.append(Item(one, question))
        seed += 1
    return tuple(found)


def chance(task: str) -> Number:
    """What an answer without looking earns: any thing's box for boxes, the commonest answer of its kind otherwise."""
    pool = items(task)
    if task in LOCALIZATION:
        return sum(1 / len(item.scene.things) for item in pool) / len(pool)
    answers = Counter((item.question.kind, item.question.answer) for item in pool)
    best = {kind: max(n for (other, _), n in answers.items() if other == kind) for kind, _ in answers}
    return sum(best.values()) / len(pool)


def patches_covered(task: str) -> Number:
    """Mean area of an answer's box in patches of 14 x 14 pixels, in a localization task (RefCOCO: 102)."""
    boxes = [item.question.box for item in items(task)]
    return sum(box.area for box in boxes if box) / len(boxes) / 14**2
