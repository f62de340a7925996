"""HDF5, one dataset per sentence, in the layout of AllenNLP's `elmo` command."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flashelmo.engine.arrays import Array
from flashelmo.engine.output import Index

NO_NAMES = range(65_500, 65_540)  # bytes; HDF5 can't open the files that it writes with names of 65,516 to 65,522


class Hdf5File:
    """An HDF5 file of datasets. In a key `/` separates groups, as in AllenNLP's files: `file[key]` finds it."""

    def __init__(self, path: Path) -> None:
        self._disk = _Disk(path, "w+b")
        self._file = h5py.File(self._disk, "w")
        self._link_properties = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        self._link_properties.set_create_intermediate_group(True)
        self._link_properties.set_char_encoding(h5py.h5t.CSET_UTF8)
        self._dataset_properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._dataset_properties.set_obj_track_times(False)  # equal runs give equal files

    def key_of(self, record_id: str) -> str:
        """Return the id without characters that are special in HDF5: no groups, and not the file's root."""
        key = record_id.replace("/", "_").replace("\0", "_")
        return key if key != "." else "_"

    def add(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: str,
        blocks: Iterable[tuple[Index, Array]],
        original_id: str | None = None,
    ) -> None:
        """Write one array, given as blocks in C order, with an id, if given, as an attribute.

        KeyError: the key is taken, or cannot be one, like ".". OSError: the disk is full.
        """
        if any(len(name) in NO_NAMES for name in key.encode().split(b"/")):
            raise KeyError(key)
        try:
            # h5py's create_dataset does the same and takes twice as long
            dataset = h5py.h5d.create(
                self._file.id,
                key.encode("utf-8"),
                h5py.h5t.py_create(np.dtype(dtype)),
                h5py.h5s.create_simple(shape),
                dcpl=self._dataset_properties,
                lcpl=self._link_properties,
            )
        except ValueError:
            self._disk.check()
            raise KeyError(key) from None
        for index, block in blocks:
            if block.shape == shape:
                dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(block))
            else:
                h5py.Dataset(dataset)[index] = block
        if original_id is not None:
            h5py.Dataset(dataset).attrs["original_id"] = original_id.replace("\0", "\ufffd")
        self._disk.check()

    def add_text(self, key: str, text: str) -> None:
        """Write one variable-length text."""
        self._file.create_dataset(key, (1,), dtype=h5py.string_dtype())[0] = text

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
        self._disk.close()
        self._disk.check()

    def abort(self) -> None:
        """Close the file without finishing it; nothing more is written."""
        self._disk.discard = True
        self._file.close()
        self._disk.close()


class _Disk(io.FileIO):
    """The file beneath HDF5, whose writes never fail: on a full disk HDF5 would segfault.

    Attributes:
        error: the first one, which `check` raises; what is written after it is lost.
        discard: drop everything written from now on.
    """

    error: OSError | None = None
    discard = False

    def write(self, data: Any) -> int:
        """Write all of `data`, or remember why that failed."""
        rest = memoryview(data)
        while rest and self.error is None and not self.discard:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file, or remember why that failed."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def check(self) -> None:
        """Raise the error that writing encountered."""
        if self.error is not None:
            raise self.error
