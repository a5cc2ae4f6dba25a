"""Results that survive a kill: every batch is on the disk before the next begins, and nothing is measured twice."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swiftvlm.errors import SwiftVLMError

FORMAT = 1
Row = dict[str, Any]


def _answer(row: Row) -> tuple[str, str]:
    """What a row is the answer of, and to what."""
    return row["cell"], row["key"]


class Journal:
    """Rows of one result file. While it grows, new rows stand line by line in a file beside it (`.part`)."""

    def __init__(self, path: Path, header: dict[str, Any], must: tuple[str, ...] = (), borrowed: bool = False) -> None:
        """Open a result file to go on with it; `header` says what it must have been measured with.

        Model, tasks and dtype must be those of the file, and whatever else `must` names and the file knows. A
        `borrowed` file may still be growing under somebody else: it is only read.

        Raises:
            SwiftVLMError: the file is no result file, or of another model, or of other questions.
        """
        self.path, self.part, self.borrowed = path, path.with_name(path.name + ".part"), borrowed
        self.header, self.must = {"format": FORMAT, **header}, ("format", "model", "tasks", "dtype", *must)
        # What each cell's name stands for; reading the two files below fills it in.
        self.cells: dict[str, str] = {}
        self.rows: list[Row] = self._finished() + self._unfinished()
        self.done = {_answer(row) for row in self.rows}

    def _check(self, found: Any, where: Path) -> None:
        if not isinstance(found, dict):
            raise SwiftVLMError(f"{where} exists and is no result file; give another --out")
        for key in self.must:
            mine, theirs = self.header.get(key), found.get(key)
            # Files from before a key was written down are taken as they are.
            if mine != theirs and (key in found or key in ("format", "model", "tasks")):
                way = "it cannot be joined" if self.borrowed else "give another --out to keep it"
                raise SwiftVLMError(f"{where} was measured with another {key} ({theirs!r}, now {mine!r}); {way}")
        self._claim(found.get("cells", {}), where)

    def _claim(self, cells: Any, where: Path) -> None:
        for label, method in dict(cells).items():
            if self.cells.setdefault(label, method) != method:
                raise SwiftVLMError(
                    f"{where} has answers of {label} as {self.cells[label]}, and now it is {method}; give another --out"
                )

    def claim(self, cells: dict[str, str]) -> None:
        """Note what each cell's name stands for.

        Raises:
            SwiftVLMError: the file has answers of something else under that name.
        """
        fresh = {label: method for label, method in cells.items() if label not in self.cells}
        self._claim(cells, self.path)
        # A file's header names the cells it began with; later ones get a line of their own, before their rows.
        if fresh and self.part.exists() and self.part.stat().st_size:
            self._write([json.dumps({"cells": fresh})])

    def _finished(self) -> list[Row]:
        if not self.path.exists():
            return []
        try:
            data = json.loads(self.path.read_text())
            rows, found = list(data["rows"]), data["header"]
        except (OSError, ValueError, KeyError, TypeError):
            raise SwiftVLMError(f"{self.path} exists and is no result file; give another --out") from None
        self._check(found, self.path)
        return rows

    def _unfinished(self) -> list[Row]:
        if not self.part.exists():
            return []
        whole = self.part.read_bytes()
        # A kill in the middle of a write leaves half a line; its batch is measured again.
        whole = whole[: whole.rfind(b"\n") + 1]
        if not self.borrowed:
            with self.part.open("r+b") as file:
                file.truncate(len(whole))
        # A kill between the last two lines of `finish` leaves the same rows in both files.
        known = {_answer(row) for row in self._finished()}
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines:
                self._check(lines[0], self.part)
            return [row for row in self._batches(lines[1:]) if _answer(row) not in known]
        except (ValueError, KeyError, TypeError) as error:
            raise SwiftVLMError(f"{self.part} is damaged ({error}); mend it, or give another --out") from None

    def _batches(self, lines: list[Any]) -> Iterator[Row]:
        """Rows of the lines behind the header; what stands for a cell's name is noted on the way."""
        for line in lines:
            if isinstance(line, dict):
                self._claim(line["cells"], self.part)
            else:
                yield from line

    def add(self, rows: list[Row]) -> None:
        """A batch's rows, on the disk when this returns."""
        # A kill within the header's write leaves an empty file, once its half line is cut off.
        fresh = not self.part.exists() or self.part.stat().st_size == 0
        head = [json.dumps(self.header | {"cells": self.cells})] if fresh else []
        # One line a batch: it is there whole or not at all.
        self._write([*head, json.dumps(rows)])
        self.rows += rows
        self.done |= {_answer(row) for row in rows}

    def _write(self, lines: list[str]) -> None:
        with self.part.open("a") as file:
            file.write("".join(line + "\n" for line in lines))
            # Out of Python's buffer, then out of the system's.
            file.flush()
            os.fsync(file.fileno())

    def join(self, other: "Journal") -> None:
        """Take over the rows of another file of the same model and questions that are not here yet.

        Raises:
            SwiftVLMError: a cell's name stands for another method there.
        """
        # Before any row: names that clash must leave this file as it was.
        self.claim(other.cells)
        fresh = {_answer(row): row for row in other.rows}
        if missing := [row for key, row in fresh.items() if key not in self.done]:
            self.add(missing)

    def finish(self, summary: list[Row]) -> None:
        """One JSON of header, summary and rows; the unfinished file goes.

        What another process wrote to the same file meanwhile is kept; only the summary does not count it.
        """
        on_disk = Journal(self.path, self.header, self.must, borrowed=True)
        fresh = [row for row in on_disk.rows if _answer(row) not in self.done]
        self.rows += fresh
        self.done |= {_answer(row) for row in fresh}
        self.cells = on_disk.cells | self.cells
        head = self.header | {"cells": self.cells}
        # Without spaces: they would be a tenth of a file of many answers.
        text = json.dumps({"header": head, "summary": summary, "rows": self.rows}, separators=(",", ":"))
        # Each row on a line of its own, for diffs. Quotes inside answers are escaped, so none of them matches.
        text = text.replace('{"task"', '\n {"task"')
        written = self.path.with_name(self.path.name + ".new")
        written.write_text(text + "\n")
        # In one step: a kill leaves the old file or the new one, never half of one.
        written.replace(self.path)
        self.part.unlink(missing_ok=True)
