"""Accuracy under pruning: tasks, scores with standard errors, resumable runs, tables in the layout of the papers."""

from swiftvlm.evaluation.journal import Journal, Row
from swiftvlm.evaluation.oracle import ORACLE, Listed
from swiftvlm.evaluation.run import Cell, Evaluation, fingerprint
from swiftvlm.evaluation.scorers import mean, paired, score
from swiftvlm.evaluation.summary import VANILLA, summarize
from swiftvlm.evaluation.tables import table
from swiftvlm.evaluation.tasks import Sample, Task
from swiftvlm.evaluation.user import user_tasks

__all__ = [
    "ORACLE",
    "VANILLA",
    "Cell",
    "Evaluation",
    "Journal",
    "Listed",
    "Row",
    "Sample",
    "Task",
    "fingerprint",
    "mean",
    "paired",
    "score",
    "summarize",
    "table",
    "user_tasks",
]
