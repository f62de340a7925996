"""Where vectors go: files that appear under their name only when they are whole."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from flashelmo.engine.arguments import flag, path_of
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Array, Index, Output

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", "")
INDEX_NAME = "sentence_to_index"


class Store(Protocol):
    """A file format: named arrays, written one by one."""

    def add(self, key: str, shape: tuple[int, ...], dtype: str, blocks: Iterable[tuple[Index, Array]]) -> None:
        """Write one array, which comes in blocks in C order."""

    def add_text(self, key: str, text: str) -> None:
        """Write one text as an array of shape (1,)."""

    def close(self) -> None:
        """Finish the file."""

    def abort(self) -> None:
        """Close the file without finishing it, whatever state it is in."""


class Sink:
    """One sentence after the other into a store, under the keys of AllenNLP's `elmo` command (0.9).

    A sentence's key is its number, from 0, or with `use_sentence_keys` the sentence. With numbers, and unless
    `forget_sentences`, the text `sentence_to_index` maps sentences to keys in JSON; the last of equal sentences stays.

    Args:
        path: the name that errors give.
        store: the file.
        output: what is kept of a sentence.
    """

    def __init__(self, path: Path, store: Store, output: Output, use_sentence_keys: bool, forget_sentences: bool):
        self.path = path
        self.output = output
        self.needs_sentences = use_sentence_keys or not forget_sentences
        self._store = store
        self._use_sentence_keys = use_sentence_keys
        self._index: dict[str, str] | None = None if use_sentence_keys or forget_sentences else {}
        self._n_written = 0

    def write(self, vectors: Array, sentence: str = "") -> None:
        """Write what `output` asks for of a sentence; the text matters where `needs_sentences`.

        Args:
            vectors: [L, T, 2P] of all layers, [T, 2P] of one, without T where pooled; of any floating-point type.

        Raises:
            FlashElmoError: the file cannot be written, a key that was there or cannot be one, vectors that `output`
                does not ask for, a value beyond the number type's range.
        """
        key = str(self._n_written)
        if self._use_sentence_keys:
            self._check_key(sentence)
            key = sentence
        elif self._index is not None:
            self._index[sentence] = key
        with self._errors(key):
            self._store.add(key, vectors.shape, self.output.dtype, self.output.blocks(vectors))
        self._n_written += 1

    def close(self) -> None:
        """Write the index of sentences where there is one, and finish the file."""
        with self._errors(INDEX_NAME):
            if self._index is not None:
                self._store.add_text(INDEX_NAME, json.dumps(self._index))
            self._store.close()

    def abort(self) -> None:
        """Close the file after an error, without finishing it."""
        with suppress(Exception):  # the error that led here is the one to tell
            self._store.abort()

    def _check_key(self, sentence: str) -> None:
        line = self._n_written + 1
        if not sentence:
            raise FlashElmoError(f"line {line}: an empty sentence cannot be a key; leave out --use-sentence-keys")
        if "\0" in sentence:
            raise FlashElmoError(f"line {line}: a NUL character cannot be in a key; leave out --use-sentence-keys")

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn a store's errors into FlashElmoErrors that name the file, and the line of a key that cannot be."""
        try:
            with writing(self.path):
                yield
        except KeyError:
            raise FlashElmoError(
                f"{self.path}: line {self._n_written + 1}: the key {key[:60]!r} is taken already, or no key of this "
                "format; leave out --use-sentence-keys"
            ) from None


@contextmanager
def open_sink(
    path: str | Path,
    output: Output | None = None,
    *,
    overwrite: bool = False,
    use_sentence_keys: bool = False,
    forget_sentences: bool = False,
    always_hdf5: bool = False,
) -> Iterator[Sink]:
    """Open a file to write vectors to: `.npz`, or HDF5 under `.h5`, `.hdf5`, `.hdf` or no suffix.

    The file is written under a temporary name in the same folder and takes its own name when the context ends well;
    after an exception nothing is left, and what killed runs left is removed by the next one.

    Args:
        path: the file.
        output: what is kept of a sentence.
        overwrite: replace a file that exists.
        use_sentence_keys, forget_sentences: see `Sink`.
        always_hdf5: HDF5, whatever the suffix.

    Raises:
        FlashElmoError: another suffix; the file exists and `overwrite` is not set, when the context begins or when it
            ends, as another run may have written it meanwhile; or it cannot be written.
    """
    path = path_of("output", path)
    overwrite, always_hdf5 = flag("overwrite", overwrite), flag("always_hdf5", always_hdf5)
    use_sentence_keys = flag("use_sentence_keys", use_sentence_keys)
    forget_sentences = flag("forget_sentences", forget_sentences)
    final = Path(os.path.realpath(path))  # a link stays one: what it points to is replaced
    with writing(path):
        _check_path(path, final, overwrite)
    is_npz = not always_hdf5 and _is_npz(path)
    sink = None
    with _temporary(path, final) as temporary:
        try:
            with writing(path):
                store = _open_store(temporary, is_npz)
            sink = Sink(path, store, output or Output(), use_sentence_keys, forget_sentences)
            yield sink
            sink.close()
            with writing(path):
                _publish(temporary, final, overwrite)
        except BaseException:
            if sink is not None:
                sink.abort()
            raise


def _check_path(path: Path, final: Path, overwrite: bool) -> None:
    if str(path) == "-":
        raise FlashElmoError("-: expected a file's name; vectors cannot be written to standard output")
    if not final.parent.is_dir():
        raise FlashElmoError(f"{path}: there is no folder {final.parent}")
    if not final.exists():
        return
    if not final.is_file():
        raise FlashElmoError(f"{path}: expected a file's name, found a folder or device")
    if not overwrite:
        raise _exists(path)


def _exists(path: Path) -> FlashElmoError:
    return FlashElmoError(f"{path}: exists already; --overwrite replaces it")


@contextmanager
def _temporary(path: Path, final: Path) -> Iterator[Path]:
    """A new empty file beside `final` that no other run uses; gone when the context ends, if it has that name still.

    A run holds a lock on its file, which ends with the process: whoever gets the lock of another's may remove it.
    """
    prefix = f".{final.name[:100]}."
    with writing(path):
        _remove_leftovers(final.parent, prefix)
        while True:
            temporary = final.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            try:
                if lock(descriptor, temporary):
                    break
            except OSError:  # a file system without locks, where leftovers stay
                break
            os.close(descriptor)  # another run has taken it for a leftover before it was locked
    try:
        yield temporary
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove the temporary files of an output whose runs have ended."""
    name = re.compile(re.escape(prefix) + r"[0-9a-f]{16}\.tmp")
    for leftover in [entry for entry in folder.iterdir() if name.fullmatch(entry.name)]:
        with suppress(OSError):  # another's, or another run removes it as well
            descriptor = os.open(leftover, os.O_RDWR)
            try:
                if lock(descriptor, leftover):
                    leftover.unlink()
            finally:
                os.close(descriptor)


def lock(descriptor: int, path: Path) -> bool:
    """Lock an open file for this run; False where another holds it, or it is no longer the file of that name."""
    from fcntl import LOCK_EX, LOCK_NB, flock  # not on Windows

    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _is_npz(path: Path) -> bool:
    """Whether the suffix is .npz's, not one of HDF5's."""
    suffix = path.suffix.lower()
    if suffix != ".npz" and suffix not in HDF5_SUFFIXES:
        raise FlashElmoError(f"{path}: expected a name that ends with .h5, .hdf5 or .npz, found {path.suffix}")
    return suffix == ".npz"


def _open_store(path: Path, is_npz: bool) -> Store:
    if is_npz:
        from flashelmo.engine.sinks.npz import NpzFile

        return NpzFile(path)
    from flashelmo.engine.sinks.hdf5 import Hdf5File

    return Hdf5File(path)


def _publish(temporary: Path, final: Path, overwrite: bool) -> None:
    """Give the finished file its name, once its contents are safe on disk. FileExistsError: the name is taken."""
    sync(temporary)
    if overwrite:
        os.replace(temporary, final)
    else:
        take_name(temporary, final)
    with suppress(OSError):  # not every system lets one open a folder
        sync(final.parent)


def take_name(temporary: Path, final: Path) -> None:
    """Give the file a name that no other has. FileExistsError: it is taken."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(final, os.O_CREAT | os.O_EXCL))
        os.replace(temporary, final)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors into a FlashElmoError of one line."""
    try:
        yield
    except FileExistsError:
        raise _exists(path) from None
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error).partition("\n")[0]
        raise FlashElmoError(f"{path}: cannot write: {reason}") from None
