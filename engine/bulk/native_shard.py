"""A shard as a safetensors file of vectors, and its index beside it: how it is written, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flashelmo.engine.arrays import Array, Int64
from flashelmo.engine.bulk.shards import INDEX_ROWS, Rows, Shard, shard_name
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.sinks.files import NewFile

ALIGNMENT = 64  # bytes, of the first tensor


class NativeWriter:
    """Writes vectors to a safetensors file, with the index beside it."""

    def __init__(self, folder: Path, shard: Shard, rows: Rows, index: pa.Table) -> None:
        self._index, self._index_path = index, folder / f"{shard_name(shard.number)}.parquet"
        self._rows, self._offsets = rows, rows.offsets(shard.records.offsets)
        self._file = NewFile(folder / f"{shard_name(shard.number)}.safetensors")

    def begin(self) -> None:
        """Write what comes before the vectors."""
        shape = int(self._offsets[-1]), *self._rows.shape
        self._file.write(head_of(self._offsets, shape, self._rows.dtype))
        self._file.write(self._offsets.astype("<i8").view(np.uint8))

    def write(self, block: Array) -> None:
        """Write the next rows."""
        self._file.write(block.reshape(-1).view(np.uint8))

    def publish(self) -> dict[str, Any]:
        """Finish, and return each file's size and sha256, by its name."""
        found = {self._file.path.name: self._file.publish()}
        file = NewFile(self._index_path)
        try:
            pq.write_table(self._index, file, compression="zstd", row_group_size=INDEX_ROWS)
            return found | {file.path.name: file.publish()}
        finally:
            file.abort()

    def abort(self) -> None:
        """Leave nothing behind."""
        self._file.abort()


class NativeValues:
    """Rows in a file of safetensors."""

    def __init__(self, path: Path, rows: Rows) -> None:
        path = path.with_suffix(".safetensors")
        data = np.memmap(path, np.uint8, mode="r")
        begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
        try:
            header = json.loads(data[8:begin].tobytes())
            parts = [data[begin:][slice(*header[name]["data_offsets"])] for name in ("offsets", "values")]
            self._offsets: Int64 = np.asarray(parts[0]).view(np.int64)
            self._values: Array = np.asarray(parts[1]).view(rows.dtype).reshape(-1, *rows.shape)
            is_whole = [*self._offsets[[0, -1]]] == [0, len(self._values)] and (np.diff(self._offsets) >= 0).all()
        except (ValueError, KeyError, TypeError, IndexError):
            is_whole = False
        if not is_whole:
            raise FlashElmoError(f"{path}: expected offsets and values, found something else")

    def rows(self, b: int) -> Array:
        """Those of record b: a view of the file."""
        return self._values[self._offsets[b] : self._offsets[b + 1]]


def head_of(offsets: Int64, shape: Sequence[int], dtype: str, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return what a file of safetensors begins with: `offsets` follow, then `values`, so that both are aligned."""
    n_bytes = np.dtype(dtype).itemsize
    end = offsets.nbytes + prod(shape) * n_bytes
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    entries |= {
        "offsets": {"dtype": "I64", "shape": [len(offsets)], "data_offsets": [0, offsets.nbytes]},
        "values": {"dtype": f"F{8 * n_bytes}", "shape": shape, "data_offsets": [offsets.nbytes, end]},
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
