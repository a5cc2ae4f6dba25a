"""The embedded model: a small LLaVA-1.5, also as a LLaVA-NeXT, its tasks, and its training."""

from swiftvlm.mini.anyres import load_mini_anyres
from swiftvlm.mini.load import load_mini
from swiftvlm.mini.tasks import check_task, embedded_task

__all__ = [
    "check_task",
    "embedded_task",
    "load_mini",
    "load_mini_anyres",
]
