"""What a run is resumed from: one file per checkpoint, complete or not there at all; the newest two are kept."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from flashelmo.engine.arguments import shown
from flashelmo.engine.errors import FlashElmoError, MissingExtraError, first_line, reason_of
from flashelmo.engine.system.files import sync, why_not_written

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "torch", "training") from error

KEPT = 2
TEMPORARY = ".step-"  # prefix of the name of a file that is being written
NAME = re.compile(r"step-(\d+)\.pt")


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
