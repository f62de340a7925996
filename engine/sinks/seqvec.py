"""The files that the pipeline around SeqVec (bio_embeddings) writes for proteins, under its names, in one folder.

    embeddings_file.h5           what is kept of each residue: all layers [L, T, 2P], or the requested ones
    reduced_embeddings_file.h5   a vector for each protein [2P]: the mean over its residues of the layers' sum
    mapping_file.csv             a row for each: its key in both files, its id, its number of residues

A key is the protein's index in the input, as with the pipeline's `simple_remapping`: its other keys, checksums of the
residues, cannot distinguish equal proteins. In both files the attribute `original_id` of a key is the protein's id.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from flashelmo.engine.arguments import flag, path_of
from flashelmo.engine.arrays import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output, cast, pool_mean
from flashelmo.engine.sinks import ENTRY_BYTES, FILE_SUFFIXES, Record
from flashelmo.engine.sinks.files import RUN, check_path, publish, temporary_file, writing
from flashelmo.engine.sinks.hdf5 import Hdf5File
from flashelmo.engine.system.files import check_link

RESIDUES, PROTEINS, MAPPING = "embeddings_file.h5", "reduced_embeddings_file.h5", "mapping_file.csv"
COLUMNS = ("", "original_id", "sequence_length")
ROW_BYTES = 64  # about, per row of the mapping


class SeqVecSink:
    """Writes proteins one after the other into SeqVec's files; one without residues gets a vector of zeros.

    Args:
        folder: the name used in errors.
        output: what to keep of a residue; if pooled, there is no file of residues, and the vectors of proteins are the
            mean or the maximum over residues of the layers' sum.
        residues, proteins: the files; no residues if they are pooled.
        mapping: receives the table.
    """

    needs_sentences = False

    def __init__(
        self, folder: Path, output: Output, residues: Hdf5File | None, proteins: Hdf5File, mapping: IO[str]
    ) -> None:
        self.path, self.output = folder, output
        self._residues, self._proteins, self._mapping = residues, proteins, mapping
        self._table = csv.writer(mapping, lineterminator="\n")
        self._table.writerow(COLUMNS)

    def begin(self, n_layers: int) -> None:
        """Set how many layers the model has, before the first `write`. Pooled layers are then requested as their sum.

        Raises:
            FlashElmoError: the output requests a layer that the model lacks.
        """
        self.output.check(n_layers)
        if self.output.pool and not self.output.single:
            self.output = replace(self.output, layers="average", mix=self.output.coefficients(n_layers).sum(axis=0))

    def n_bytes(self, n_layers: int, size: int, n_tokens: int, n_sentences: int) -> int:
        """Return about how many bytes vectors of 2P = size and n_layers layers will take."""
        value = np.dtype(self.output.dtype).itemsize
        n_values = 0 if self.output.pool else n_tokens * int(np.prod(self.output.shape((n_layers, 1, size))))
        return (n_values + n_sentences * size) * value + n_sentences * (2 * ENTRY_BYTES + ROW_BYTES)

    def write(self, vectors: Array, sentence: str = "", record: Record | None = None) -> None:
        """Write a protein's vectors, as `output` requests them; the sentence is ignored.

        Raises:
            FlashElmoError: the files cannot be written; a value beyond the number type's range.
        """
        assert record is not None
        key, output = str(record.number), self.output
        own_id = key if record.id is None else record.id
        with writing(self.path):
            if self._residues is not None:
                self._residues.add(key, vectors.shape, output.dtype, output.blocks(vectors), own_id)
            vector = cast(vectors if output.pool else _mean_of_sum(vectors), output.dtype)
            self._proteins.add(key, vector.shape, output.dtype, [((), vector)], own_id)
            self._table.writerow([key, own_id, record.n_tokens])

    def close(self) -> None:
        """Finish the files."""
        with writing(self.path):
            for file in self._files():
                file.close()

    def abort(self) -> None:
        """Close the files after an error, without finishing them."""
        for file in self._files():
            with suppress(Exception):  # the original error is the one to report
                getattr(file, "abort", file.close)()

    def _files(self) -> list[Any]:
        return [file for file in (self._residues, self._proteins, self._mapping) if file is not None]


def _mean_of_sum(vectors: Array) -> Array:
    """Return the mean over residues of the sum of the layers: [L, T, 2P] or [T, 2P] -> [2P]."""
    return pool_mean(vectors.sum(axis=0, dtype=np.float32) if vectors.ndim == 3 else vectors.astype(np.float32))


@contextmanager
def open_seqvec(folder: str | Path, output: Output | None = None, *, overwrite: bool = False) -> Iterator[SeqVecSink]:
    """Open SeqVec's files in a folder, created if necessary, to write vectors to.

    They take their names when the context ends well, the mapping last: if it is there, the others are complete.

    Args:
        folder: may have other files, but no shards.
        output: what to keep of a residue; see `SeqVecSink`.
        overwrite: replace such files if they exist.

    Raises:
        FlashElmoError: one of the files exists and `overwrite` is not set; the folder has shards, or cannot be created
            or written to.
    """
    folder, overwrite, output = path_of("output", folder), flag("overwrite", overwrite), output or Output()
    if folder.suffix.lower() in (*FILE_SUFFIXES, ".csv") or (folder.exists() and not folder.is_dir()):
        raise FlashElmoError(f"{folder}: expected a folder's name for SeqVec's files, found a file's")
    check_link(folder)
    if (folder / RUN).exists():
        raise FlashElmoError(f"{folder}: expected a folder for SeqVec's files, found a folder of shards")
    names = [RESIDUES, PROTEINS, MAPPING]
    is_new = not folder.exists()
    with writing(folder):
        for name in [] if is_new else names:
            check_path(folder / name, folder.resolve() / name, overwrite)
        folder.mkdir(exist_ok=True)
    written = names[1:] if output.pool else names
    with ExitStack() as stack:
        if is_new:
            stack.callback(_remove_if_empty, folder)
        temporary = {
            name: stack.enter_context(temporary_file(folder / name, folder.resolve() / name)) for name in written
        }
        with writing(folder):
            stores = {name: Hdf5File(temporary[name]) for name in written[:-1]}
            mapping = open(temporary[MAPPING], "w", encoding="utf-8", newline="")  # noqa: SIM115
        sink = SeqVecSink(folder, output, stores.get(RESIDUES), stores[PROTEINS], mapping)
        try:
            yield sink
            sink.close()
            with writing(folder):
                if overwrite:
                    for name in (MAPPING, RESIDUES):
                        (folder / name).unlink(missing_ok=True)
                for name in written:
                    publish(temporary[name], folder.resolve() / name, overwrite)
        except BaseException:
            sink.abort()
            raise


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        os.rmdir(folder)
