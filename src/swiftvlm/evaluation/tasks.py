"""What is evaluated: samples with a question, a true answer, and a picture that is made when it is needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from swiftvlm.amounts import Number


@dataclass(frozen=True)
class Sample:
    """One question. `image` names the picture (samples of several tasks share it); `box`: shares of its sides.

    Where it is known what stands where: `shown`, of the picture's `patches`, row by row, those that any thing or sign
    touches; `target`, the one under the middle of the box, or of each sign, that is the answer. `exact`: whether an
    answer in words must have the very letters, or may differ in case, punctuation and articles.
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
    patches: int = 0
    exact: bool = True


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
