"""Two things that are done with files everywhere: sums of what they hold, and the wait until they are on the disk."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """sha256 of a file, as hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's contents, or the names that a folder lists, are on the disk.

    Raises:
        OSError: the disk is full or gone, or the system opens no folders.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR  # Windows flushes only files that are open for writing
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
