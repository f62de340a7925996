"""NumPy's .npz: a zip archive with one array per sentence, written without keeping any in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flashelmo.engine.arrays import Array
from flashelmo.engine.output import Index


class NpzFile:
    """An archive that `numpy.load` reads: member `key.npy` is the array of `key`."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._keys: set[str] = set()

    def key_of(self, record_id: str) -> str:
        """Return the id without NUL."""
        return record_id.replace("\0", "_")

    def add(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: str,
        blocks: Iterable[tuple[Index, Array]],
        original_id: str | None = None,
    ) -> None:
        """Write one array, given as blocks in C order; there is no place for an id.

        KeyError: the key is taken, or too long for an archive.

        Of the keys `a` and `a.npy` NumPy would find the first one by both.
        """
        name = f"{key}.npy"
        if {key, name, key.removesuffix(".npy")} & self._keys or len(name.encode("utf-8")) > 0xFFFF:
            raise KeyError(key)
        self._keys.add(key)
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        with self._archive.open(name, "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for _, block in blocks:
                member.write(np.ascontiguousarray(block).tobytes())

    def add_text(self, key: str, text: str) -> None:
        """Write one text as UTF-8 bytes; NumPy would store every character of a string in four bytes."""
        array = np.array([text.encode("utf-8")])
        self.add(key, array.shape, array.dtype.str, [((), array)])

    def close(self) -> None:
        """Finish the archive: its directory, then the file."""
        self._archive.close()
        self._file.close()

    def abort(self) -> None:
        """Close the file, which will not be kept."""
        try:
            self._archive.close()
        finally:
            self._file.close()
