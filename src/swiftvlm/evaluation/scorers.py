"""Scores of answers, and what a mean of them is worth."""

import math
import re
from collections.abc import Sequence

from swiftvlm.amounts import Number
from swiftvlm.evaluation.tasks import Sample
from swiftvlm.inputs import read_boxes

Box = tuple[Number, Number, Number, Number]
ENOUGH = 0.5  # overlap from which a box counts, as in RefCOCO


def iou(one: Box, other: Box) -> Number:
    """Intersection over union of two boxes (left, top, right, bottom) in one measure; 0 if both are empty."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    union = areas - width * height
    return width * height / union if union > 0 else 0.0


def score(sample: Sample, answer: str) -> Number:
    """1 for a right answer, 0 for a wrong one: a box that overlaps the true one by half, or the same words."""
    if sample.box is None:
        same = answer.strip() == sample.answer
        return float(same or (not sample.exact and _words(answer) == _words(sample.answer)))
    # Only the first box counts: an answer that lists several must not be right by any of them.
    boxes = read_boxes(answer)
    return float(bool(boxes) and iou(boxes[0], sample.box) >= ENOUGH)


def _words(text: str) -> list[str]:
    """Words as VQA compares them: "The sign." is "sign"; what is nothing but articles or signs stays what it is."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return [word for word in words if word not in ("a", "an", "the")] or [text.strip()]


def mean(values: Sequence[Number]) -> tuple[Number, Number]:
    """Mean and its standard error (sample deviation over the root of n); the error of a single value is 0.

    Raises:
        ValueError: there are no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("the mean of 0 values is not known")
    middle = sum(values) / n
    spread = math.sqrt(sum((value - middle) ** 2 for value in values) / max(1, n - 1))
    return middle, spread / math.sqrt(n)


def f1(said: Sequence[bool], true: Sequence[bool]) -> Number:
    """Harmonic mean of precision and recall of `yes`; 0 if no yes is right. POPE's second figure."""
    hits = sum(a and b for a, b in zip(said, true, strict=True))
    # 2 P R / (P + R) with P = hits / said and R = hits / true.
    return 2 * hits / (sum(said) + sum(true)) if hits else 0.0


def paired(one: Sequence[Number], other: Sequence[Number]) -> tuple[Number, Number]:
    """Mean difference of two methods on the same samples and its standard error.

    Raises:
        ValueError: the two were not measured on equally many samples.
    """
    # On the same questions their difficulty cancels, which two separate errors would count twice.
    return mean([a - b for a, b in zip(one, other, strict=True)])
