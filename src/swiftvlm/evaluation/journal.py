"""Results that survive a kill: every batch is on the disk before the next begins, and nothing is measured twice."""

import json
import os
from pathlib import Path
from typing import Any

from swiftvlm.errors import SwiftVLMError

FORMAT = 1
Row = dict[str, Any]


class Journal:
    """Rows of one result file. While it grows, new rows stand line by line in a file beside it (`.part`)."""

    def __init__(self, path: Path, header: dict[str, Any], must: tuple[str, ...] = ()) -> None:
        """Open a result file to go on with it; `header` says what it must have been measured with.

        Model and tasks must be those of the file, and whatever else `must` names.

        Raises:
            SwiftVLMError: the file is no result file, or of another model, or of other questions.
        """
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.header, self.must = {"format": FORMAT, **header}, ("format", "model", "tasks", *must)
        self.rows: list[Row] = self._finished() + self._unfinished()
        self.done = {(row["cell"], row["key"]) for row in self.rows}

    def _check(self, found: Any, where: Path) -> None:
        for key in self.must:
            mine, theirs = self.header.get(key), found.get(key) if isinstance(found, dict) else None
            if mine != theirs:
                raise SwiftVLMError(
                    f"{where} was measured with another {key} ({theirs!r}, now {mine!r}); give another --out to keep it"
                )

    def _finished(self) -> list[Row]:
        if not self.path.exists():
            return []
        try:
            data = json.loads(self.path.read_text())
            rows = list(data["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            raise SwiftVLMError(f"{self.path} exists and is no result file; give another --out") from None
        self._check(data["header"], self.path)
        return rows

    def _unfinished(self) -> list[Row]:
        if not self.part.exists():
            return []
        whole = self.part.read_bytes()
        # A kill in the middle of a write leaves half a line; its batch is measured again.
        whole = whole[: whole.rfind(b"\n") + 1]
        with self.part.open("r+b") as file:
            file.truncate(len(whole))
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines:
            self._check(lines[0], self.part)
        known = {(row["cell"], row["key"]) for row in self._finished()}
        return [row for batch in lines[1:] for row in batch if (row["cell"], row["key"]) not in known]

    def add(self, rows: list[Row]) -> None:
        """A batch's rows, on the disk when this returns."""
        fresh = not self.part.exists() or self.part.stat().st_size == 0
        with self.part.open("a") as file:
            if fresh:
                file.write(json.dumps(self.header) + "\n")
            # One line a batch: it is there whole or not at all.
            file.write(json.dumps(rows) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows
        self.done |= {(row["cell"], row["key"]) for row in rows}

    def join(self, other: "Journal") -> None:
        """Take over the rows of another file of the same model and questions that are not here yet."""
        fresh = [row for row in other.rows if (row["cell"], row["key"]) not in self.done]
        if fresh:
            self.add(fresh)

    def finish(self, summary: list[Row]) -> None:
        """One JSON of header, summary and rows; the unfinished file goes."""
        text = json.dumps({"header": self.header, "summary": summary, "rows": self.rows}, indent=None)
        text = text.replace('{"task"', '\n {"task"')
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text(text + "\n")
        fresh.replace(self.path)
        self.part.unlink(missing_ok=True)
