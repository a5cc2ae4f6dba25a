"""A user's own questions: a file with one JSON object a line."""

import hashlib
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from swiftvlm.errors import SwiftVLMError
from swiftvlm.evaluation.tasks import Sample, Task
from swiftvlm.inputs import open_image

FIELDS = "image (a path, from the file's folder), question, and answer (text) or box ([x1, y1, x2, y2] in 0 to 1)"
SHOWN = 5  # malformed lines that are told in full


def user_tasks(path: Path) -> list[Task]:
    """The tasks in a JSONL file: `image`, `question`, `answer` or `box`, and, if wanted, `task` and `id`.

    Lines without a `task` are one named after the file. An answer counts if it is the very text, a box if it overlaps
    the true one by half.

    Raises:
        SwiftVLMError: no such file, no questions, or malformed lines, each told by its number.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as refused:
        raise SwiftVLMError(f"{path}: cannot be read as text ({refused})") from None
    # What is wrong with a line is its value here, not an exception: all bad lines are told together.
    read = [(number, _sample(line, path)) for number, line in enumerate(lines, 1) if line.strip()]
    samples = [found for _, found in read if isinstance(found, Sample)]
    _check(path, [f"{path}:{number}: {found}" for number, found in read if isinstance(found, str)], samples)
    grouped: dict[str, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(sample.task, []).append(sample)
    # What guessing would earn is not known of a user's answers: 0. A box in every line makes a localization task.
    return [
        Task(name, 1, all(sample.box is not None for sample in found), lambda: 0.0, tuple(found))
        for name, found in grouped.items()
    ]


def _check(path: Path, wrong: list[str], samples: list[Sample]) -> None:
    """Raise `SwiftVLMError` for lines that are wrong, named twice, or missing altogether."""
    counts = Counter(sample.key for sample in samples)
    wrong = wrong + [f"{path}: two lines have the id {key!r}" for key, count in counts.items() if count > 1]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise SwiftVLMError("; ".join(wrong[:SHOWN]) + more + f". Every line is one JSON object with {FIELDS}")
    if not samples:
        raise SwiftVLMError(f"{path} has no questions; every line is one JSON object with {FIELDS}")


def _sample(line: str, path: Path) -> Sample | str:
    """The sample of a line, or what is wrong with it."""
    try:
        data = json.loads(line)
    except json.JSONDecodeError as broken:
        return f"no JSON ({broken.msg} at column {broken.colno})"
    if not isinstance(data, dict):
        return f"a JSON object is expected, got {type(data).__name__}"
    unknown = sorted(set(data) - {"image", "question", "answer", "box", "task", "id"})
    if unknown:
        return f"unknown field {unknown[0]!r}"
    for name in ("image", "question"):
        if not isinstance(data.get(name), str) or not data[name].strip():
            return f"{name} must be a text, got {data.get(name)!r}"
    image = path.parent / data["image"]
    if not image.is_file():
        return f"there is no image {image}"
    told = _answer(data)
    if isinstance(told, str):
        return told
    task, answer = str(data.get("task", path.stem)), str(data.get("answer", "")).strip()
    # Without an id, what is asked is its name: lines may move, and answers must not pass to another question.
    asked = json.dumps([data["image"], data["question"], data.get("answer"), data.get("box")])
    key = f"{task}/{data['id'] if 'id' in data else hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    picture = partial(open_image, str(image))
    # A checkpoint says "Yes." where the file says "yes".
    return Sample(task, key, str(image), picture, data["question"], answer, told[0], exact=False)


def _answer(data: dict[str, Any]) -> tuple[tuple[float, float, float, float] | None] | str:
    """The true box of a line (None where a text is asked for), or what is wrong with it."""
    if ("answer" in data) == ("box" in data):
        return "give an answer or a box, and not both"
    if "answer" in data:
        fine = isinstance(data["answer"], str) and data["answer"].strip()
        return (None,) if fine else f"answer must be a text, got {data['answer']!r}"
    return _box(data["box"])


def _box(box: Any) -> tuple[tuple[float, float, float, float] | None] | str:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        return f"box must be four numbers, got {box!r}"
    x1, y1, x2, y2 = (float(value) for value in box)
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        return f"box must be [x1, y1, x2, y2] in shares of the picture's sides, 0 to 1 and in order, got {box}"
    return ((x1, y1, x2, y2),)
