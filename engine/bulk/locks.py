"""Locks on a folder of shards: one run writes to it, or the jobs of one array, each its own shards.

They are the system's (flock) and end with the process, however it ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from flashelmo.engine.bulk import folder as folders
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.sinks.files import RUN, writing
from flashelmo.engine.system.files import NO_LOCKS, lock, take_folder

ALL = ".lock"
DIGITS = 20
ATTEMPTS, PAUSE = 20, 0.02  # to share the folder; seconds


@contextmanager
def locked(folder: Path, num_shards: int, shard_id: int) -> Iterator[None]:
    """Keep other runs from writing the same shards while the context lasts. The folder is created.

    Raises:
        FlashElmoError: another run writes them.
    """
    with ExitStack() as stack:
        with writing(folder):
            folder.mkdir(exist_ok=True)
        take_folder(folder, lambda: _take(folder, num_shards, shard_id, stack))
        yield


@contextmanager
def removed_if_unused(folder: Path) -> Iterator[None]:
    """Remove a folder that was not there before, if the context fails and no shard, and no other run, is in it."""
    is_new = not folder.exists()
    try:
        yield
    except BaseException:
        with suppress(FlashElmoError, *NO_LOCKS), ExitStack() as stack:
            if is_new and folder.is_dir() and _take(folder, 1, 0, stack):
                names = sorted(os.listdir(folder), reverse=True)  # the lock itself is the last
                if all(name == RUN or name.startswith(ALL) for name in names):
                    for name in names:
                        (folder / name).unlink()
                    folder.rmdir()
        raise


@contextmanager
def begin_writing(
    folder: Path, resume: bool, overwrite: bool, num_shards: int = 1, shard_id: int = 0
) -> Iterator[None]:
    """Lock a folder while the context lasts, and remove killed runs' leftovers; with `overwrite`, all shards too.

    Args:
        folder: of the shards; created if necessary.
        resume, overwrite, num_shards, shard_id: see `embed_corpus`.

    Raises:
        FlashElmoError: the folder must not be written to; nothing in it has changed then.
    """
    in_array = num_shards > 1
    folders.check_new(folder, resume, overwrite, in_array)
    unused = nullcontext() if in_array else removed_if_unused(folder)  # the others may hold its lock
    with unused, locked(folder, num_shards, shard_id):
        folders.check_new(folder, resume, overwrite, in_array)  # from now on, nothing else changes it
        if overwrite or (not in_array and not folders.shard_numbers(folder)):  # then nothing is lost
            folders.clear(folder)
        folders.remove_leftovers(folder, num_shards, shard_id)
        yield


def _take(folder: Path, num_shards: int, shard_id: int, stack: ExitStack) -> bool:
    if num_shards == 1:
        return lock(_opened(folder / ALL, stack), folder / ALL)
    return _share(folder, num_shards, stack) and _take_job(folder / f"{ALL}-{shard_id}", stack)


def _opened(path: Path, stack: ExitStack) -> int:
    with writing(path):
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    stack.callback(os.close, descriptor)
    return descriptor


def _share(folder: Path, num_shards: int, stack: ExitStack) -> bool:
    """Share the folder with the jobs of an equally large array; the first one writes the number into the lock."""
    from fcntl import LOCK_NB, LOCK_SH, flock

    descriptor = _opened(folder / ALL, stack)
    for attempt in range(ATTEMPTS):  # another job may briefly hold it exclusively, to write the number
        if attempt:
            time.sleep(PAUSE)
        if lock(descriptor, folder / ALL):
            os.pwrite(descriptor, f"{num_shards:<{DIGITS}}".encode(), 0)
        try:
            flock(descriptor, LOCK_SH | LOCK_NB)
        except BlockingIOError:
            continue
        return os.pread(descriptor, DIGITS, 0).split() == [str(num_shards).encode()]
    return False


def _take_job(path: Path, stack: ExitStack) -> bool:
    """Take a job's own lock, which is removed at the end."""
    taken = lock(_opened(path, stack), path)
    if taken:
        stack.callback(path.unlink, missing_ok=True)
    return taken
