"""Files that appear under their names only when complete."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from flashelmo.engine.errors import FlashElmoError, first_line
from flashelmo.engine.output import Output
from flashelmo.engine.system.files import check_link, sync, temporary_beside

RUN = "run.json"  # in a folder of shards, written before any of them


def check_path(path: Path, final: Path, overwrite: bool) -> None:
    """Raise FlashElmoError if a file cannot become what `path` names; `final` is the path without links."""
    if str(path) == "-":
        raise FlashElmoError("-: expected a file's name; vectors cannot be written to standard output")
    if not final.parent.is_dir():
        raise FlashElmoError(f"{path}: there is no folder {final.parent}")
    check_link(final)
    if not final.exists():
        return
    if not final.is_file():
        raise FlashElmoError(f"{path}: expected a file's name, found a folder or device")
    if not overwrite:
        raise _exists(path)


def _exists(path: Path) -> FlashElmoError:
    return FlashElmoError(f"{path}: exists already; overwrite=True replaces it")


@contextmanager
def temporary_file(path: Path, final: Path) -> Iterator[Path]:
    """Yield an empty file as `temporary_beside` does; `path` is named in errors."""
    with ExitStack() as stack:
        with writing(path):
            make = partial(Path.touch, exist_ok=False)
            temporary = stack.enter_context(temporary_beside(final, make, partial(Path.unlink, missing_ok=True)))
        yield temporary


def publish(temporary: Path, final: Path, overwrite: bool) -> None:
    """Give the finished file its name, once its contents are safe on disk. FileExistsError: the name is taken."""
    sync(temporary)
    if overwrite:
        os.replace(temporary, final)
    else:
        take_name(temporary, final)
    with suppress(OSError):  # it has its name
        sync(final.parent)


def take_name(temporary: Path, final: Path) -> None:
    """Give the file a name that no other has. FileExistsError: it is taken."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(final, os.O_CREAT | os.O_EXCL))
        os.replace(temporary, final)


class NewFile:
    """A file under a temporary name, written from beginning to end, with its checksum computed on the way.

    Args:
        path: its name once it is complete.
        mark: part of the temporary name, if several runs may write the same file.
    """

    def __init__(self, path: Path, mark: str = "") -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}{mark}.tmp")
        self.closed = False
        self._file = open(self.temporary, "wb", buffering=0)  # noqa: SIM115
        self._digest = hashlib.sha256()
        self._n_bytes = 0

    def write(self, data: Any) -> int:
        """Write all of it. OSError: the disk is full, or gone."""
        view = memoryview(data)
        rest = view if view.format == "B" and view.ndim == 1 else view.cast("B")
        n_bytes = len(rest)
        self._digest.update(rest)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._n_bytes += n_bytes
        return n_bytes

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._n_bytes

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        self._file.close()

    def publish(self, overwrite: bool = True) -> dict[str, Any]:
        """Give the file its name, once it is safe on disk; return its size and sha256.

        FileExistsError: the name is taken, and nothing is to be replaced.
        """
        os.fsync(self._file.fileno())
        self.close()
        os.replace(self.temporary, self.path) if overwrite else take_name(self.temporary, self.path)
        return {"bytes": self._n_bytes, "sha256": self._digest.hexdigest()}

    def abort(self) -> None:
        """Remove what was written."""
        self.close()
        self.temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any], overwrite: bool = True) -> None:
    """Write a JSON file that ends with a checksum of its values, completely or not at all.

    FileExistsError: it exists, and is not to be replaced.
    """
    file = NewFile(path, "" if overwrite else f".{secrets.token_hex(8)}")
    try:
        file.write((json.dumps({**values, "sha256": sha256_of_json(values)}, indent=1) + "\n").encode())
        file.publish(overwrite)
    finally:
        file.abort()
    sync(path.parent)


def sha256_of_json(values: dict[str, Any]) -> str:
    """Return the sha256 of values, however their file is laid out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors into one-line FlashElmoErrors."""
    try:
        yield
    except FileExistsError:
        raise _exists(path) from None
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else first_line(error)
        raise FlashElmoError(f"{path}: cannot write: {reason}") from None


def check_space(path: Path, n_bytes: float, output: Output) -> None:
    """Raise FlashElmoError if the disk that a file or folder is on, or will be on, has too little room.

    Args:
        output: what is written of each sentence: the message suggests what would take less.
    """
    real = Path(os.path.realpath(path))
    folder = real if real.is_dir() else real.parent
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        sizes = f"expected about {n_bytes:,.0f} bytes of free disk, found {free:,.0f}"
        raise FlashElmoError(f"{path}: {sizes}{_advice(output)}")


def _advice(output: Output) -> str:
    """Return what would take less."""
    arguments = (
        ('layers="top"', output.single),
        ('dtype="float16"', output.dtype == "float16"),
        ('pool="mean"', output.pool),
    )
    less = [argument for argument, chosen in arguments if not chosen]
    if len(less) < 2:
        return "".join(f"; {argument} takes less" for argument in less)
    return f"; {', '.join(less[:-1])} and {less[-1]} take less"
