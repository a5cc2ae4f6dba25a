"""What the measuring commands share: the model, the questions, the result file."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel

from swiftvlm.errors import SwiftVLMError
from swiftvlm.evaluation import Journal, Row, Sample, Task, fingerprint
from swiftvlm.inputs import load_checkpoint, placed
from swiftvlm.mini import check_task, embedded_task, load_mini, load_mini_anyres


def check_out(out: Path) -> None:
    """Raise `SwiftVLMError` if a result file cannot be written there, or if its figure would be in its place."""
    # An empty path and "." have no name.
    if not out.name or out.suffix == ".png":
        raise SwiftVLMError(f"--out is a result file, such as eval.json, got {str(out)!r}")
    if not out.parent.is_dir():
        raise SwiftVLMError(f"--out {out}: there is no folder {out.parent}; make it, or give another --out")
    if not os.access(out.parent, os.W_OK):
        raise SwiftVLMError(f"--out {out}: nothing can be written to {out.parent.absolute()}; give another --out")


def check_form(anyres: bool, name: str | None) -> None:
    """Raise `SwiftVLMError` if another model is asked for in a form of the embedded model."""
    if anyres and name is not None:
        raise SwiftVLMError(f"--anyres is a form of the embedded model; leave it or --model {name} out")


def open_model(
    name: str | None, dtype: str, device: str, anyres: bool = False
) -> tuple[PreTrainedModel | LlavaForConditionalGeneration, LlavaProcessor | Any]:
    """The embedded model, if asked for as a LLaVA-NeXT, or a checkpoint by folder or hub id, with its processor."""
    if name is not None:
        return load_checkpoint(name, dtype, device)
    model, processor = load_mini_anyres() if anyres else load_mini()
    return placed(model, dtype, device), processor


def asked_tasks(names: str, count: int, source: str = "test") -> list[Task]:
    """The embedded model's tasks by name, with commas."""
    asked = list(dict.fromkeys(name.strip() for name in names.split(",")))
    # All names before any scene: a mistake in the last must not wait for the scenes of the others.
    for name in asked:
        check_task(name, count, source)
    return [embedded_task(name, count, source) for name in asked]


def samples_of(tasks: Sequence[Task]) -> list[Sample]:
    """All questions of some tasks."""
    return [sample for task in tasks for sample in task.samples]


def rows_of(journal: Journal, tasks: Sequence[Task]) -> list[Row]:
    """The answers to these questions; a file may hold others, of an earlier command."""
    keys = {sample.key for sample in samples_of(tasks)}
    return [row for row in journal.rows if row["key"] in keys]


def header(model: Any, tasks: list[Task], kind: str) -> dict[str, Any]:
    """With what a file is measured: the model, its dtype, the tasks' version, versions of libraries, the hardware."""
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    return {
        "kind": kind,
        "model": fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tasks": {"embedded": tasks[0].version},
        "versions": versions,
        "hardware": {"device": str(model.device), "machine": platform.machine(), "threads": torch.get_num_threads()},
    }
