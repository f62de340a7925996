"""What identifies a run: what must not change between its attempts, and a lock so that only one is at work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from flashelmo.engine.arguments import is_stream
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.system.files import lock, sha256_of, take_folder
from flashelmo.engine.training.checkpoint import TEMPORARY
from flashelmo.engine.training.processes import Processes
from flashelmo.engine.training.settings import TrainSettings
from flashelmo.engine.training.softmax_files import find_softmax
from flashelmo.engine.training.task import Task

LOCK = ".lock"
# Leftovers of killed runs in the run's folder: files and folders that were never renamed.
LEFTOVERS = f"{TEMPORARY}*", ".corpus.*", "snapshots/.[0-9][0-9][0-9].*"


def fingerprint_of(
    task: Task, settings: TrainSettings, config: ElmoConfig, start: ElmoModel | None, processes: Processes, compute: str
) -> dict[str, Any]:
    """Return what must not change between the attempts of a run, ready for JSON; files are given by their checksums.

    Args:
        task, settings: of the run.
        config: of its model.
        start: the model that it continues from.
        processes: those of the run, of which the first one reads the files.
        compute: the type of products.

    Raises:
        FlashElmoError: a text is missing.
    """
    fingerprint = {
        "config": config.to_dict(),
        "corpus": ["-" if is_stream(path) else path.name for path in task.corpus],
        "start": None if start is None else start.sha256,
        "processes": processes.number,
        "compute": compute,
        **processes.first(lambda: _sums(task, start)),
        **settings.fingerprint(),
    }
    found: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return found


def _sums(task: Task, start: ElmoModel | None) -> dict[str, str]:
    """Return checksums of the files that are read, besides a model's weights; what comes through a pipe has none."""
    sums: dict[str, str] = {}
    for path in task.corpus:
        if not is_stream(path):
            name = f"sha256 of {path.name}"
            sums[name] = " ".join([*sums.get(name, "").split(), _sha256_of_text(path)])
    if task.vocabulary is not None:
        sums["sha256 of the vocabulary"] = _sha256_of_text(task.vocabulary)
    softmax = None if start is None else find_softmax(start)
    if softmax is not None:
        sums["sha256 of the softmax"] = softmax.sha256
    return sums


def _sha256_of_text(path: Path) -> str:
    if not path.is_file():
        raise FlashElmoError(f"{path}: expected a file of text, found none")
    return sha256_of(path)


@contextmanager
def only_run(folder: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs out of a run's folder while the context lasts; one process does this for all. The folder is
    created.

    Leftovers of killed runs in it are removed.

    Raises:
        FlashElmoError: another run is at work there, or the folder cannot be written.
    """
    with ExitStack() as stack:
        processes.first(lambda: _enter(folder, stack))
        yield


def _enter(folder: Path, stack: ExitStack) -> None:
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise FlashElmoError(f"{folder}: cannot be written: {reason_of(error)}") from None
    stack.callback(os.close, descriptor)
    take_folder(folder, lambda: lock(descriptor, path))
    stack.callback(_leave, folder)
    for leftover in [path for pattern in LEFTOVERS for path in folder.glob(pattern)]:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _leave(folder: Path) -> None:
    """Remove the lock, and the folder if it is empty."""
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()
