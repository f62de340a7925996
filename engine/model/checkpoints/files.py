"""Files and folders of checkpoints: JSON with clear errors, archives, folders that appear whole or not at all."""

from __future__ import annotations

import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.files import check_link, sync, why_not_written

# What a folder may hold to be replaced: files that are written here, and nothing of the user's.
MODEL_FILES = {"config.json", "model.safetensors", "lexicon.json", "options.json", "weights.hdf5", "vocab.txt"}

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "lzma"}  # by a file's first bytes; modules
MAX_GROWTH = 32  # trained numbers shrink by a tenth, vocabularies to a fifth
ANY_GROWTH = 1 << 20  # bytes that nobody minds


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, with or without a byte order mark; FlashElmoError where it cannot be read or is something else."""
    check_regular(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FlashElmoError(f"{path}: cannot be read: {reason_of(error)}") from None
    except (ValueError, RecursionError) as error:
        raise FlashElmoError(f"{path}: expected JSON: {error}") from None
    if not isinstance(values, dict):
        raise FlashElmoError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def check_regular(path: Path) -> None:
    """Raise FlashElmoError where a path is neither a file nor a folder: a pipe may wait, a device be read, for ever."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FlashElmoError(f"{path}: expected a file or folder, found a pipe, socket or device")


@contextmanager
def new_folder(folder: Path, overwrite: bool, ours: Callable[[str], bool] = MODEL_FILES.__contains__) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it does not.

    Only a folder whose files, by their paths in it, are all `ours` is ever replaced.
    """
    folder = folder.absolute()
    try:
        check_replaceable(folder, overwrite, ours)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as workspace:
            new, old = Path(workspace, "new"), Path(workspace, "old")
            new.mkdir()
            yield new
            for path in new.rglob("*"):
                if path.is_file():
                    sync(path)
            if not folder.exists():
                new.rename(folder)
                return
            folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
    except OSError as error:
        raise FlashElmoError(f"{folder}: cannot be written: {why_not_written(error, folder.parent)}") from None


def check_replaceable(folder: Path, overwrite: bool, ours: Callable[[str], bool]) -> None:
    """Raise FlashElmoError where a folder has anything in it, unless it is to be replaced and holds but `ours`."""
    check_link(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise FlashElmoError(f"{folder}: exists already; pass --overwrite (overwrite=True) to replace it")
    if not folder.is_dir():
        raise FlashElmoError(f"{folder}: expected a folder to replace, found a file")
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if others := sorted(name for name in (path.relative_to(folder).as_posix() for path in files) if not ours(name)):
        raise FlashElmoError(f"{folder}: expected a model's folder to replace, found other files in it: {others[0]}")


@contextmanager
def extracted(archive: Path, parent: Path | None = None) -> Iterator[Path]:
    """The files of a zip or tar archive in a temporary folder; none is ever written outside it.

    Args:
        archive: which.
        parent: of the folder, where it is not the system's for temporary files.

    Raises:
        FlashElmoError: the archive is damaged, or would grow beyond `check_growth`; then nothing is unpacked.
    """
    with tempfile.TemporaryDirectory(prefix="flashelmo.", dir=parent) as folder:
        try:
            if zipfile.is_zipfile(archive):
                check_zip(archive)
                with zipfile.ZipFile(archive) as file:
                    file.extractall(folder)
            else:
                with opened_tar(archive) as tar:
                    check_growth(archive, sum(member.size for member in tar))
                    tar.extractall(folder, filter="data")
        except FlashElmoError:
            raise
        except Exception as error:  # each compression has errors of its own for damaged data
            raise FlashElmoError(f"{archive}: expected a whole zip or tar archive: {reason_of(error)}") from None
        yield Path(folder)


@contextmanager
def opened_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, compressed or not, of which no more is ever unpacked than `check_growth` allows."""
    with unpacked(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]
        yield tar


@contextmanager
def unpacked(path: Path) -> Iterator[_Bounded]:
    """The contents of a file that may be compressed by gzip, bzip2 or xz."""
    with path.open("rb") as file:
        start = file.read(max(map(len, COMPRESSIONS)))
    module = next((name for signature, name in COMPRESSIONS.items() if start.startswith(signature)), "io")
    with import_module(module).open(path, "rb") as file:
        yield _Bounded(path, file)


class _Bounded:
    """What `tarfile` needs of a file for reading; a place beyond `check_growth` is an error."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file, self.tell = path, file, file.tell

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all."""
        most = growth_limit(self._path) - self.tell() + 1
        data = self._file.read(most if size < 0 else min(size, most))
        check_growth(self._path, self.tell())
        return data

    def seek(self, place: int) -> int:
        """Go to a place, by unpacking what lies before it."""
        check_growth(self._path, place)
        return self._file.seek(place)


def check_zip(path: Path) -> None:
    """Raise FlashElmoError unless a zip archive's files are as small as `check_growth` allows."""
    with zipfile.ZipFile(path) as archive:
        check_growth(path, sum(member.file_size for member in archive.infolist()))


def growth_limit(path: Path) -> int:
    """The most bytes that a file may take when it is unpacked."""
    return MAX_GROWTH * path.stat().st_size + ANY_GROWTH


def check_growth(path: Path, n_bytes: int) -> None:
    """Raise FlashElmoError where unpacking a file would take far more bytes than it has, as no trained model does.

    Options are no better bound: whoever makes such a file writes them too.
    """
    if n_bytes > growth_limit(path):
        limit = f"expected at most {growth_limit(path):,} bytes when unpacked"
        raise FlashElmoError(f"{path}: {limit}, by its size of {path.stat().st_size:,}, found {n_bytes:,} or more")


def check_rows(lexicon: Mapping[str, int], n_rows: int, source: Path) -> None:
    """Every entry of a lexicon must be a row of the embedding."""
    for token, row in lexicon.items():
        if not 0 <= row < n_rows:
            raise FlashElmoError(f"{source}: {token!r} is row {row}, but the embedding's rows are 0 to {n_rows - 1}")
