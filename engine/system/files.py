"""Operations on files used everywhere: checksums, locks, temporary names, waiting until they are on disk."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path

from flashelmo.engine.errors import FlashElmoError, first_line

CHUNK_BYTES = 1 << 20
NAME_BYTES = 100  # of a name that a temporary one begins with: it may have 255 in all
NO_LOCKS = OSError, ImportError  # on a file system without locks, and on Windows

logger = logging.getLogger("flashelmo")


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Return the folder of what is kept for this user from run to run (XDG's rules); None if there is no home folder.

    Nothing else than models has another one if its user wishes (`model.named.table.home`).
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "flashelmo")
    except RuntimeError:
        return None


def sync(path: Path) -> None:
    """Wait until a file's contents, or the names in a folder, are on disk; no effect where folders can't be opened.

    Raises:
        OSError: the disk is full or gone.
    """
    try:
        descriptor = _open(path)
    except PermissionError:  # as for any folder on Windows
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths without links are one place, also on a file system that ignores the case of names."""
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def is_foreign(name: str) -> bool:
    """Whether macOS leaves files of this name in folders: .DS_Store, and ._NAME beside NAME on some file systems."""
    return name == ".DS_Store" or name.startswith("._")


def check_link(path: Path) -> None:
    """Raise FlashElmoError if a path is a link to something missing, or to itself: no file could take its name."""
    if path.is_symlink() and not path.exists():
        raise FlashElmoError(f"{path}: expected a file, a folder or nothing, found a link that leads nowhere")


def lock(descriptor: int, path: Path) -> bool:
    """Lock an open file for this run; return False if another holds it, or it is no longer the file of that name.

    Raises:
        OSError, ImportError: locks are not available.
    """
    from fcntl import LOCK_EX, LOCK_NB, flock

    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def temporary_beside(final: Path, make: Callable[[Path], object], remove: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a file or folder beside `final` that no other run uses; it is removed at the end, as are leftovers before.

    A run holds a lock on it, which ends with the process: whoever gets the lock of another's may remove it.
    """
    whole_characters = os.fsencode(final.name)[:NAME_BYTES].decode("utf-8", "ignore").encode()
    prefix = f".{os.fsdecode(whole_characters)}."  # which need not be UTF-8 in this locale
    name = re.compile(re.escape(prefix) + r"[0-9a-f]{16}\.tmp")
    for leftover in [entry for entry in final.parent.iterdir() if name.fullmatch(entry.name)]:
        with suppress(*NO_LOCKS):  # another run's, or another run is removing it as well
            other = _open(leftover)
            try:
                if lock(other, leftover):
                    remove(leftover)
            finally:
                os.close(other)
    while True:
        temporary = final.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")
        make(temporary)
        descriptor: int | None = None
        try:
            descriptor = _open(temporary)
            if lock(descriptor, temporary):
                break
        except FileNotFoundError:  # another run took it for a leftover before it was locked
            continue
        except NO_LOCKS:  # then leftovers stay
            if descriptor is not None:  # Windows renames and removes no file that is open
                os.close(descriptor)
                descriptor = None
            break
        os.close(descriptor)  # likewise
    try:
        yield temporary
    finally:
        if descriptor is not None:
            os.close(descriptor)
        remove(temporary)


def temporary_folder(final: Path, remove: Callable[[Path], object] | None = None) -> AbstractContextManager[Path]:
    """Yield a folder as `temporary_beside` does; `remove` removes it, and others', in another way than `rmtree`."""
    return temporary_beside(final, Path.mkdir, remove or partial(shutil.rmtree, ignore_errors=True))


def _open(path: Path) -> int:
    """Open a file for writing, as Windows flushes no other, or a folder."""
    return os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)


def take_folder(folder: Path, take: Callable[[], bool]) -> None:
    """Lock a folder by what says whether it took the locks. Where there are none, a warning says so.

    Raises:
        FlashElmoError: another run holds them.
    """
    try:
        taken = take()
    except NO_LOCKS:
        logger.warning("%s: no file locks here, so nothing keeps another run from writing to it", folder)
        return
    if not taken:
        raise FlashElmoError(f"{folder}: another run is writing here")


def why_not_written(error: BaseException, folder: Path) -> str:
    """Return why a library could not write a file in a folder: the system's reason, if its error has one.

    Otherwise the free space on the disk is given as well.
    """
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno is not None:
            return os.strerror(behind.errno)
        behind = behind.__cause__ or behind.__context__
    try:
        return f"{first_line(error)}; {shutil.disk_usage(folder).free:,} bytes are free there"
    except OSError:
        return first_line(error)
