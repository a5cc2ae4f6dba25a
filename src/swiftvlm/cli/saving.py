"""Saving a run: all files or none."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from swiftvlm.errors import SwiftVLMError

Writer = Callable[[Path], None]


class SaveError(SwiftVLMError, OSError):
    """A folder that cannot be written to."""


def check_folder(folder: Path) -> None:
    """Raise `SaveError` unless the folder can be written to, or created where it is missing."""
    if folder.exists() and not folder.is_dir():
        raise SaveError(f"--save {folder}: is a file, give a folder")
    # Missing folders are made inside the nearest one that exists: its rights decide.
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        raise SaveError(f"--save {folder}: no right to write in {existing}")


def save_all(folder: Path, files: Mapping[str, Writer]) -> None:
    """Write every file beside the folder first and move them in only when all are complete.

    Raises `SaveError` (no space, no right); then, and on Ctrl-C, nothing is left behind.
    """
    check_folder(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the folder itself, so that moving is a rename on one file system.
        waiting = Path(tempfile.mkdtemp(prefix=".swiftvlm-", dir=folder))
    except OSError as error:
        raise SaveError(f"--save {folder}: {error}") from None
    complete = False
    try:
        for name, write in files.items():
            write(waiting / name)
        for name in files:
            os.replace(waiting / name, folder / name)
        complete = True
    except OSError as error:
        raise SaveError(f"--save {folder}: {error}") from None
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
        if made and not complete:
            shutil.rmtree(folder, ignore_errors=True)
