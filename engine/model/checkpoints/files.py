"""Files and folders of checkpoints: JSON with clear errors, archives, folders that appear complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.system.files import check_link, is_foreign, sync, temporary_folder, why_not_written

# What a folder may hold to be replaced: files that flashelmo writes, and nothing of the user's.
MODEL_FILES = {"config.json", "model.safetensors", "lexicon.json", "options.json", "weights.hdf5", "vocab.txt"}

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "lzma"}  # by a file's first bytes; modules
MAX_GROWTH = 32  # trained numbers shrink by a tenth, vocabularies to a fifth
ANY_GROWTH = 1 << 20  # bytes that never matter


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, with or without a byte order mark; FlashElmoError if it is unreadable or something else."""
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
    """Raise FlashElmoError if a path is neither a file nor a folder: a pipe or device could be read for ever."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FlashElmoError(f"{path}: expected a file or folder, found a pipe, socket or device")


@contextmanager
def new_folder(folder: Path, overwrite: bool, ours: Callable[[str], bool] = MODEL_FILES.__contains__) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` if the block succeeds, and is removed if it fails.

    A folder is only replaced if all its files, by their paths in it, are `ours`.
    """
    folder = folder.absolute()

    def remove(workspace: Path) -> None:
        old = workspace / "old"
        if os.path.lexists(old) and not os.path.lexists(folder):  # what was to be replaced, and was not
            old.rename(folder)
        shutil.rmtree(workspace, ignore_errors=True)

    try:
        check_replaceable(folder, overwrite, ours)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder, remove) as workspace:
            check_replaceable(folder, overwrite, ours)  # a killed run may have left it half replaced
            new = workspace / "new"
            new.mkdir()
            try:
                yield new
            except FlashElmoError as error:  # of a file, which is named as it would have been
                error.args = (str(error).replace(str(new), str(folder)),)
                raise
            for path in new.rglob("*"):
                if path.is_file():
                    sync(path)
            if folder.exists():
                folder.rename(workspace / "old")
            new.rename(folder)
    except OSError as error:
        raise FlashElmoError(f"{folder}: cannot be written: {why_not_written(error, folder.parent)}") from None


def check_replaceable(folder: Path, overwrite: bool, ours: Callable[[str], bool]) -> None:
    """Raise FlashElmoError if a folder has any contents, unless it is to be replaced and holds only `ours`."""
    check_link(folder)
    if not folder.exists() or (folder.is_dir() and all(is_foreign(entry.name) for entry in folder.iterdir())):
        return
    if not overwrite:
        raise FlashElmoError(f"{folder}: exists already; pass overwrite=True to replace it")
    if not folder.is_dir():
        raise FlashElmoError(f"{folder}: expected a folder to replace, found a file")
    files = (path for path in folder.rglob("*") if path.is_symlink() or not (path.is_dir() or is_foreign(path.name)))
    if others := sorted(name for name in (path.relative_to(folder).as_posix() for path in files) if not ours(name)):
        raise FlashElmoError(f"{folder}: expected a model's folder to replace, found other files in it: {others[0]}")


@contextmanager
def extracted(archive: Path, parent: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder with the files of a zip or tar archive; none is ever written outside it.

    Args:
        archive: the archive's path.
        parent: where to make the folder, if not in the system's folder for temporary files.

    Raises:
        FlashElmoError: the archive is damaged, or would exceed `check_growth`; then nothing is unpacked.
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
                    _extract(tar, Path(folder))
        except FlashElmoError:
            raise
        except Exception as error:  # each compression has its own errors for damaged data
            raise FlashElmoError(f"{archive}: expected a whole zip or tar archive: {reason_of(error)}") from None
        yield Path(folder)


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    for member in tar:  # Python before 3.10.12 and 3.11.4, as Debian 12 has
        path = Path(os.path.normpath(folder / member.name))
        if not path.is_relative_to(os.path.normpath(folder)) or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r}: expected a file or a folder inside")
        (path if member.isdir() else path.parent).mkdir(parents=True, exist_ok=True)
        if contents := tar.extractfile(member):
            with contents, path.open("wb") as file:
                shutil.copyfileobj(contents, file)


@contextmanager
def opened_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar archive, compressed or not; it never unpacks more than `check_growth` allows."""
    with unpacked(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]
        yield tar


@contextmanager
def unpacked(path: Path) -> Iterator[_Bounded]:
    """Open a file, which may be compressed by gzip, bzip2 or xz, for reading its contents."""
    with path.open("rb") as file:
        start = file.read(max(map(len, COMPRESSIONS)))
    module = next((name for signature, name in COMPRESSIONS.items() if start.startswith(signature)), "io")
    with import_module(module).open(path, "rb") as file:
        yield _Bounded(path, file)


class _Bounded:
    """The part of a file's interface that `tarfile` reads with; positions beyond `check_growth` are an error."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file, self.tell = path, file, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, or all."""
        most = growth_limit(self._path) - self.tell() + 1
        data = self._file.read(most if size < 0 else min(size, most))
        check_growth(self._path, self.tell())
        return data

    def seek(self, place: int) -> int:
        """Go to a position, by unpacking everything before it."""
        check_growth(self._path, place)
        return self._file.seek(place)


def check_zip(path: Path) -> None:
    """Raise FlashElmoError unless a zip archive's files are within `check_growth`."""
    with zipfile.ZipFile(path) as archive:
        check_growth(path, sum(member.file_size for member in archive.infolist()))


def growth_limit(path: Path) -> int:
    """Return the largest number of bytes that a file may unpack to."""
    return MAX_GROWTH * path.stat().st_size + ANY_GROWTH


def check_growth(path: Path, n_bytes: int) -> None:
    """Raise FlashElmoError if unpacking a file would take far more bytes than it has, which no trained model does.

    Its options would be no better limit: whoever makes such a file writes them too.
    """
    if n_bytes > growth_limit(path):
        limit = f"expected at most {growth_limit(path):,} bytes when unpacked"
        raise FlashElmoError(f"{path}: {limit}, by its size of {path.stat().st_size:,}, found {n_bytes:,} or more")


def check_rows(lexicon: Mapping[str, int], n_rows: int, source: Path) -> None:
    """Raise FlashElmoError unless every entry of a lexicon is a row of the embedding."""
    for token, row in lexicon.items():
        if not 0 <= row < n_rows:
            raise FlashElmoError(f"{source}: {token!r} is row {row}, but the embedding's rows are 0 to {n_rows - 1}")
