"""What a run is resumed from: one file per checkpoint, complete or not there at all; the newest two are kept.

The next one is due by a clock that costs nothing in between.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flashelmo.engine.arguments import shown
from flashelmo.engine.errors import FlashElmoError, first_line, reason_of
from flashelmo.engine.system.files import sync, why_not_written
from flashelmo.engine.training.processes import Processes

KEPT = 2
TEMPORARY = ".step-"  # prefix of the name of a file that is being written
NAME = re.compile(r"step-(\d+)\.pt")
MOST_STEPS, TINY = 1 << 30, 1e-9  # between two looks at the clock; seconds


def save_checkpoint(folder: Path, step: int, values: dict[str, Any]) -> Path:
    """Write a checkpoint; all but the newest two are removed once it is on disk.

    Raises:
        FlashElmoError: it cannot be written; the previous checkpoints are intact.
    """
    path = folder / f"step-{step:09d}.pt"
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=TEMPORARY, delete=False) as file:
            temporary = Path(file.name)
            torch.save(values, file)
        sync(temporary)
        temporary.replace(path)
        with suppress(OSError):  # not every system allows opening a folder
            sync(folder)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter on a full disk
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        last = found[-1].name if (found := checkpoints(folder)) else "there is none"
        why = why_not_written(error, folder)
        raise FlashElmoError(f"{path}: cannot be written: {why}; last checkpoint: {last}") from None
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return a folder's checkpoints, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.pt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


class Saved(NamedTuple):
    """A checkpoint: its file and that file's contents."""

    path: Path
    values: dict[str, Any]

    @contextmanager
    def fits(self) -> Iterator[None]:
        """Turn errors from a checkpoint of other sizes, or without a value, into one-line FlashElmoErrors."""
        try:
            yield
        except FlashElmoError:
            raise
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            found = f"found one that does not fit ({type(error).__name__}: {first_line(error)})"
            expected = "expected a checkpoint of this run"
            raise FlashElmoError(
                f"{self.path}: {expected}, {found}; to start over, delete {self.path.parent}"
            ) from None


def load_checkpoint(folder: Path, fingerprint: dict[str, Any]) -> Saved | None:
    """Return the newest checkpoint that can be read; None if there is none.

    Raises:
        FlashElmoError: it belongs to another run; the message names the first setting that differs.
    """
    for path in reversed(checkpoints(folder)):
        try:
            values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            found = dict(values["fingerprint"])
        except Exception as error:
            why = reason_of(error)
            logging.getLogger("flashelmo").warning("%s: cannot be read, the one before is taken: %s", path, why)
            continue
        for name in sorted(fingerprint.keys() | found.keys()):
            if fingerprint.get(name) != found.get(name):
                expected = f"expected {name} {shown(found.get(name))}, as it was made with"
                found_here = f"found {shown(fingerprint.get(name))}; to start over, delete {folder}"
                raise FlashElmoError(f"{path}: {expected}, {found_here}")
        return Saved(path, values)
    return None


class SaveClock:
    """Decides after which steps a checkpoint is written.

    A single process looks at its clock after every step. Several use the first one's clock, for which they have to wait
    for each other: all after the same steps, each time after half of the steps that remain at the first one's pace.

    Args:
        seconds: between two checkpoints.
        processes: those of the run.
        taken: steps taken so far.
    """

    def __init__(self, seconds: float, processes: Processes, taken: int) -> None:
        self._seconds, self._processes = seconds, processes
        self._began, self._first = time.monotonic(), taken
        self._saved, self._next_look = self._began, taken

    def is_due(self, taken: int) -> bool:
        """Whether to write a checkpoint after this step; all processes get the same answer."""
        if taken < self._next_look:
            return False
        steps = self._processes.first(lambda: self._steps_left(taken))
        self._next_look = taken + (steps if self._processes.number > 1 else 1)
        return steps == 0

    def restart(self) -> None:
        """Start timing anew, after a checkpoint was written."""
        self._saved = time.monotonic()

    def _steps_left(self, taken: int) -> int:
        """Return half of the steps for which there is time; 0 if time is up."""
        now = time.monotonic()
        left = self._seconds - (now - self._saved)
        pace = (now - self._began) / max(1, taken - self._first)
        return 0 if left <= 0 else max(1, int(min(MOST_STEPS, left / (2 * pace + TINY))))
