"""Where an input's bytes come from: this machine or another, as they are or decompressed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa

from flashelmo.engine.arguments import ADDRESS, is_stream, path_of, standard_input
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.system.threads import Background

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}  # suffix: Arrow's name


class Input:
    """An input's bytes.

    Args:
        source: a path, "-" for standard input, or an address that fsspec opens, such as s3://bucket/file.
    """

    def __init__(self, source: str | Path) -> None:
        self.name = str(source)
        suffixes = [suffix.lower() for suffix in PurePosixPath(self.name).suffixes]
        self._compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
        if self._compression:
            suffixes.pop()
        self.suffix = suffixes[-1] if suffixes else ""  # without that of a compression
        self._open = _opener(source)

    @property
    def is_plain(self) -> bool:
        """Whether it is on this machine and not compressed."""
        return self._compression is None and not ADDRESS.match(self.name)

    @property
    def n_bytes(self) -> int | None:
        """The number of bytes, decompressed; None if only reading can tell."""
        return None if self._compression is not None else self._size()

    def open(self) -> IO[bytes]:
        """Open the bytes from the beginning, decompressed; seekable if that is free.

        Raises:
            FlashElmoError: an address cannot be opened.
            OSError: a file cannot be read.
        """
        file = self._open()
        if self._compression is None:
            return file
        return cast("IO[bytes]", Decompressed(file, self._compression, self._size()))

    def _size(self) -> int | None:
        """Return the bytes of the file as stored; None if unknown."""
        if is_stream(self.name):
            return None
        if ADDRESS.match(self.name):
            return _size_at(self.name)
        path = Path(os.path.expanduser(self.name))
        return path.stat().st_size if path.is_file() else None


class Decompressed:
    """A text that is decompressed as it is read.

    Args:
        file: the compressed file.
        compression: Arrow's name for it.
        size: bytes of the file, if known.
    """

    def __init__(self, file: IO[bytes], compression: str, size: int | None) -> None:
        self._file, self._size, self._n_read = file, size, 0
        self._text = pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)

    @property
    def n_bytes(self) -> int | None:
        """The text's estimated size, from the compression ratio so far; exact at the end. None if unknown.

        The file is read somewhat ahead, so the estimate tends to be too small at first.
        """
        done = 0 if self._size is None else self._file.tell()
        return None if self._size is None or not done else round(self._n_read * max(1.0, self._size / done))

    def read(self, n_bytes: int) -> bytes:
        """Read the next bytes of the text."""
        data: bytes = self._text.read(n_bytes)
        self._n_read += len(data)
        return data

    def seekable(self) -> bool:
        """Return False: it can only be read from the beginning."""
        return False

    def close(self) -> None:
        """Close the file too."""
        self._text.close()


def _opener(source: str | Path) -> Callable[[], IO[bytes]]:
    if source == "-":
        standard = standard_input()
        return _Once("-", lambda: standard, closes=False).open
    if isinstance(source, str) and ADDRESS.match(source):
        return lambda: _open_address(source)
    path = path_of("input", source)
    return _Once(str(path), lambda: path.open("rb")).open if is_stream(path) else lambda: path.open("rb")


def _open_address(address: str) -> IO[bytes]:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("fsspec", "bulk", f"reading {address}") from error
    try:
        return cast("IO[bytes]", fsspec.open(address, "rb").open())
    except (ValueError, ImportError) as error:  # no such protocol, or its package is absent
        raise FlashElmoError(f"{address}: expected an address that fsspec opens, found: {error}") from None


def _size_at(address: str) -> int | None:
    """Return the bytes at an address; None if the server does not say, or nothing is there, as opening will report."""
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(address)
        size = system.size(path)
    except Exception:
        return None
    return None if size is None else int(size)


class _Once:
    """A file that cannot be read twice.

    Args:
        name: for messages.
        open: opens it.
        closes: whether to close it with this; nobody waits for a thread that still reads, perhaps for ever.
    """

    closed = False

    def __init__(self, name: str, open: Callable[[], IO[bytes]], closes: bool = True) -> None:
        self.name, self._open, self._closes = name, open, closes
        self._file: IO[bytes] | None = None
        self._reading = threading.Lock()

    def open(self) -> Any:
        if self._file is not None:
            found = "standard input" if self.name == "-" else "a pipe or a device"
            raise FlashElmoError(f"{self.name}: expected an input that can be read again, found {found}")
        self._file = self._open()
        return self

    def read(self, n_bytes: int) -> bytes:
        assert self._file is not None
        with self._reading:
            return self._file.read(n_bytes)

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        if not self._closes or self._file is None:
            return
        if self._reading.acquire(blocking=False):
            self._file.close()
            self._reading.release()
        else:
            Background(self._file.close)
