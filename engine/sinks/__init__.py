"""Where vectors go.

files.py   files that appear under their name only when complete
hdf5.py    HDF5, one array per sentence
npz.py     NumPy's archives, likewise
seqvec.py  the files of SeqVec's pipeline
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flashelmo.engine.arguments import flag, path_of
from flashelmo.engine.arrays import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.sinks.files import check_path, publish, temporary_file, writing

if TYPE_CHECKING:
    from flashelmo.engine.sinks.hdf5 import Hdf5File
    from flashelmo.engine.sinks.npz import NpzFile

FILE_SUFFIXES = (".h5", ".hdf5", ".hdf", ".npz")
INDEX_NAME = "sentence_to_index"
ENTRY_BYTES = 300  # approximate size of an array's name and shape in a file

logger = logging.getLogger("flashelmo")


class Record(NamedTuple):
    """The record that vectors belong to.

    Attributes:
        number: its index in the input, from 0.
        id: its own id; None if it has none.
        n_tokens: its number of tokens.
    """

    number: int
    id: str | None
    n_tokens: int


class Sink:
    """Writes sentences one after the other into a store, under the keys of AllenNLP's `elmo` command (0.9).

    A sentence's key is its index, from 0, or with `use_sentence_keys` the sentence. With indices, and unless
    `forget_sentences`, the text `sentence_to_index` maps sentences to keys in JSON; of equal sentences the last counts.
    A record with its own id has that as its key; if another one already has it, "#2" and so on is appended. In HDF5, an
    id that differs from its key is the attribute `original_id`.

    Args:
        path: the name used in errors.
        store: the file.
        output: what to keep of a sentence.
    """

    def __init__(
        self, path: Path, store: Hdf5File | NpzFile, output: Output, use_sentence_keys: bool, forget_sentences: bool
    ) -> None:
        self.path = path
        self.output = output
        self.needs_sentences = use_sentence_keys or not forget_sentences
        self._store = store
        self._use_sentence_keys = use_sentence_keys
        self._index: dict[str, str] | None = None if use_sentence_keys or forget_sentences else {}
        self._n_written = 0
        self._has_ids = False
        self._repeated: dict[str, int] = {}  # keys shared by several records: how many so far

    def n_bytes(self, n_layers: int, size: int, n_tokens: int, n_sentences: int) -> int:
        """Return about how many bytes vectors of 2P = size and n_layers layers will take."""
        rows = n_sentences if self.output.pool else n_tokens
        shape = self.output.shape((n_layers, 1, size))
        return rows * prod(shape) * np.dtype(self.output.dtype).itemsize + n_sentences * ENTRY_BYTES

    def write(self, vectors: Array, sentence: str = "", record: Record | None = None) -> None:
        """Write what `output` requests of a sentence; the text matters only if `needs_sentences`.

        Args:
            vectors: [L, T, 2P] for all layers, [T, 2P] for one, without T if pooled; of any floating-point type.
            record: the record that the sentence is; None for the next line.

        Raises:
            FlashElmoError: the file cannot be written, a key is taken or cannot be used, vectors are not what `output`
                requests, or a value is beyond the number type's range.
        """
        key = str(self._n_written if record is None else record.number)
        if self._use_sentence_keys:
            self._check_key(sentence)
            key = sentence
        elif record is not None and record.id is not None:
            self._has_ids = True
            self._write_by_id(vectors, record.id or key)
            return
        elif self._index is not None:
            self._index[sentence] = key
        with self._errors(key):
            self._store.add(key, vectors.shape, self.output.dtype, self.output.blocks(vectors))
        self._n_written += 1

    def _write_by_id(self, vectors: Array, record_id: str) -> None:
        """Write under the first key for this id that is not taken."""
        with self._errors(record_id):
            key = name = self._store.key_of(record_id)
            n = self._repeated.get(key, 0)
            while True:
                name = f"{key}#{n + 1}" if n else key
                try:
                    original = None if name == record_id else record_id
                    self._store.add(name, vectors.shape, self.output.dtype, self.output.blocks(vectors), original)
                    break
                except KeyError:
                    if n > self._n_written:
                        raise
                    n += 1
        if n:
            self._repeated[key] = n + 1
        self._n_written += 1

    def close(self) -> None:
        """Write the index of sentences, if there is one, and finish the file."""
        with self._errors(INDEX_NAME):
            if self._index is not None and not self._has_ids:
                self._store.add_text(INDEX_NAME, json.dumps(self._index))
            self._store.close()
        if self._repeated:
            key = next(iter(self._repeated))
            logger.warning("%s: some records have the id of another one, as %r; #2 stands behind it", self.path, key)

    def abort(self) -> None:
        """Close the file after an error, without finishing it."""
        with suppress(Exception):  # the original error is the one to report
            self._store.abort()

    def _check_key(self, sentence: str) -> None:
        line = self._n_written + 1
        if not sentence:
            raise FlashElmoError(f"line {line}: an empty sentence cannot be a key; leave out use_sentence_keys=True")
        if "\0" in sentence:
            raise FlashElmoError(f"line {line}: a NUL character cannot be in a key; leave out use_sentence_keys=True")

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn a store's errors into FlashElmoErrors that name the file, and the line of an unusable key."""
        try:
            with writing(self.path):
                yield
        except KeyError:
            found = f"line {self._n_written + 1}: the key {key[:60]!r} is taken already, or no key of this format"
            advice = "; leave out use_sentence_keys=True" if self._use_sentence_keys else ""
            raise FlashElmoError(f"{self.path}: {found}{advice}") from None


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
    """Open a file to write vectors to: `.npz`, or HDF5 for `.h5`, `.hdf5`, `.hdf` or no suffix.

    The file is written under a temporary name in the same folder and takes its own name when the context ends well;
    after an exception nothing is left, and leftovers of killed runs are removed by the next one.

    Args:
        path: the file.
        output: what to keep of a sentence.
        overwrite: replace a file that exists.
        use_sentence_keys, forget_sentences: see `Sink`.
        always_hdf5: write HDF5, whatever the suffix.

    Raises:
        FlashElmoError: another suffix; the file exists and `overwrite` is not set, when the context begins or ends, as
            another run may have written it meanwhile; or it cannot be written.
    """
    path = path_of("output", path)
    overwrite, always_hdf5 = flag("overwrite", overwrite), flag("always_hdf5", always_hdf5)
    use_sentence_keys = flag("use_sentence_keys", use_sentence_keys)
    forget_sentences = flag("forget_sentences", forget_sentences)
    final = Path(os.path.realpath(path))  # a link stays a link: its target is replaced
    with writing(path):
        check_path(path, final, overwrite)
    is_npz = not always_hdf5 and _is_npz(path)
    with temporary_file(path, final) as temporary:
        with writing(path):
            store = _open_store(temporary, is_npz)
        sink = Sink(path, store, output or Output(), use_sentence_keys, forget_sentences)
        try:
            yield sink
            sink.close()
            with writing(path):
                publish(temporary, final, overwrite)
        except BaseException:
            sink.abort()
            raise


def _is_npz(path: Path) -> bool:
    """Whether the suffix is .npz, not one of HDF5's, which may have none."""
    suffix = path.suffix.lower()
    if suffix and suffix not in FILE_SUFFIXES:
        expected = f"expected a name that ends with .h5, .hdf5 or .npz, found {path.suffix}"
        raise FlashElmoError(f'{path}: {expected}; a folder of shards has no suffix, or format="native"')
    return suffix == ".npz"


def _open_store(path: Path, is_npz: bool) -> Hdf5File | NpzFile:
    if is_npz:
        from flashelmo.engine.sinks.npz import NpzFile

        return NpzFile(path)
    from flashelmo.engine.sinks.hdf5 import Hdf5File

    return Hdf5File(path)
